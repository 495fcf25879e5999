//go:build lab

package main

import (
	"strings"
	"testing"
)

// TestDemo is make demo.
func TestDemo(t *testing.T) {
	var out strings.Builder
	if err := run(t.Context(), &out); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	t.Log(out.String())
}
