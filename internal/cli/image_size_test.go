package cli

import (
	"errors"
	"testing"
)

func TestByteSize(t *testing.T) {
	for text, want := range map[string]int64{
		"0": 0, "1": 1, "512B": 512, "1048576": 1 << 20,
		"4K": 4 << 10, "4KiB": 4 << 10, "512M": 512 << 20, "10GiB": 10 << 30, "10 GiB": 10 << 30,
		"2040G": 2040 << 30, "2T": 2 << 40, "2TiB": 2 << 40,
		"1.5G": 3 << 29, "0.5K": 512, "9223372036854775807": 1<<63 - 1, "8388607T": 8388607 << 40,
	} {
		var s byteSize
		if err := s.UnmarshalText([]byte(text)); err != nil || int64(s) != want {
			t.Errorf("%s: got %d, %v, want %d", text, s, err, want)
		}
	}
	for _, text := range []string{
		"", "G", ".", "-1", "+1", "1e3", "0x10", "1_000", "1.2.3", "inf", "nan", "١",
		"10GB", "10MB", "10kB", "10g", "10 GiBs", "1.0001K", "0.1G", "10GiB ", " 10GiB",
		"9223372036854775808", "8388608T", "99999999999999999999", "9999999.5T",
	} {
		var s byteSize
		if err := s.UnmarshalText([]byte(text)); !errors.Is(err, errSize) {
			t.Errorf("%q: got %d, %v, want a refusal", text, s, err)
		}
	}
}

func TestSizeText(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0 B", 512: "512 B", 1 << 20: "1.0 MiB", 10 << 30: "10 GiB", 3 << 29: "1.5 GiB",
		10<<30 + 512: "10 GiB (10737418752 bytes)", 1<<63 - 1: "8.0 EiB (9223372036854775807 bytes)",
	} {
		if got := sizeText(n); got != want {
			t.Errorf("%d: got %q, want %q", n, got, want)
		}
	}
}
