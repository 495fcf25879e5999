//go:build lab

package lab

import (
	"context"
	"os"
	"testing"
)

func TestBoot(t *testing.T) {
	m, err := Boot(context.Background(), Options{Console: os.Stderr})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	out, err := m.Dom0().Shell(context.Background(), "xl info; free -m; ps; dmesg | tail -3; xl list; ls -la / /lab /share; cat /proc/uptime")
	t.Log(out, err)
}
