//go:build lab

package lab

import (
	"context"
	"testing"
)

func TestPrepareIsIdempotent(t *testing.T) {
	if err := Prepare(context.Background(), func(s string) { t.Log(s) }); err != nil {
		t.Fatal(err)
	}
	if err := Prepare(context.Background(), func(s string) { t.Errorf("second Prepare: %s", s) }); err != nil {
		t.Fatal(err)
	}
}
