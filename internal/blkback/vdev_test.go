package blkback

import (
	"errors"
	"testing"
)

func TestVdev(t *testing.T) {
	for _, c := range []struct {
		name  string
		devid uint32
	}{
		{"xvda", 202 << 8}, {"xvdb", 51728}, {"xvda1", 51713}, {"xvdp15", 202<<8 | 15<<4 | 15},
		{"xvdq", 1<<28 | 16<<8}, {"xvda16", 1<<28 | 16}, {"xvdz", 1<<28 | 25<<8}, {"xvdaa", 1<<28 | 26<<8},
		{"xvdzz", 1<<28 | 701<<8}, {"sda", 2048}, {"sdb3", 2048 + 19}, {"hda", 768}, {"hdb1", 768 + 65},
		{"hdc", 22 << 8}, {"hdd2", 22<<8 + 66},
	} {
		got, err := ParseVdev(c.name)
		if err != nil || got != c.devid {
			t.Errorf("ParseVdev(%q) = %d, %v, want %d", c.name, got, err, c.devid)
		}
		if name := VdevName(c.devid); name != c.name {
			t.Errorf("VdevName(%d) = %q, want %q", c.devid, name, c.name)
		}
	}
	for _, name := range []string{
		"", "xvd", "vda", "xvdA", "xvda0", "xvda01", "xvda256", "sdq", "sda16", "hde", "hda64", "xvdaaaaaa",
		"xvd1", "/dev/xvda", "xvda ", "xvda-1",
	} {
		if devid, err := ParseVdev(name); !errors.Is(err, ErrVdev) {
			t.Errorf("ParseVdev(%q) = %d, %v, want ErrVdev", name, devid, err)
		}
	}
}

func TestNextXVD(t *testing.T) {
	for _, c := range []struct {
		name string
		used []uint32
		want string
	}{
		{"none in use", nil, "xvda"},
		{"after the highest, as the original did", []uint32{51712, 51760}, "xvde"},
		{"a partition uses its disk", []uint32{51713}, "xvdb"},
		{"hda and xvda are one disk of an HVM guest", []uint32{768}, "xvdb"},
		{"past the sixteenth", []uint32{202<<8 | 15<<4}, "xvdq"},
		{"a number of no known space", []uint32{1}, "xvda"},
	} {
		devid, err := nextXVD(c.used)
		if got := VdevName(devid); err != nil || got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}
