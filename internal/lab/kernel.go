package lab

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os/exec"
)

// A bzImage tells where its compressed kernel lies: Linux's boot protocol,
// Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header".
const (
	bzSetupSects     = 0x1f1 // u8: setup sectors behind the first
	bzMagic          = 0x202 // "HdrS"
	bzMagicText      = "HdrS"
	bzPayloadOffset  = 0x248 // u32: from the end of the setup
	bzPayloadLength  = 0x24c // u32
	bzPayloadTrailer = 4     // the unpacked size, behind the payload
)

// decompressors are the host programs for the payloads that Debian's kernels
// have had, by the payload's first bytes.
var decompressors = []struct {
	magic string
	argv  []string
}{
	{"\xfd7zXZ\x00", []string{"xz", "-dc"}},
	{"\x28\xb5\x2f\xfd", []string{"zstd", "-dc"}},
	{"\x1f\x8b", []string{"gzip", "-dc"}},
}

// bareKernel unpacks the ELF inside of a bzImage. Xen and libxl would do so
// at each start, but emulated decompression takes them 5 s.
func bareKernel(bz []byte) ([]byte, error) {
	payload, err := kernelPayload(bz)
	if err != nil {
		return nil, fmt.Errorf("unpack kernel: %w", err)
	}
	for _, d := range decompressors {
		if !bytes.HasPrefix(payload, []byte(d.magic)) {
			continue
		}
		cmd := exec.Command(d.argv[0], d.argv[1:]...)
		cmd.Stdin = bytes.NewReader(payload)
		elf, err := cmd.Output()
		if err != nil {
			return nil, fmt.Errorf("unpack kernel: %s: %w", d.argv[0], err)
		}
		if !bytes.HasPrefix(elf, []byte("\x7fELF")) {
			return nil, fmt.Errorf("unpack kernel: the payload is no ELF")
		}
		return elf, nil
	}
	return nil, fmt.Errorf("unpack kernel: unknown compression %.8q", payload)
}

func kernelPayload(bz []byte) ([]byte, error) {
	if len(bz) < bzPayloadLength+4 || string(bz[bzMagic:bzMagic+4]) != bzMagicText {
		return nil, fmt.Errorf("read bzImage: no header")
	}
	sects := int(bz[bzSetupSects])
	if sects == 0 {
		sects = 4 // the protocol's default
	}
	start := (sects+1)*512 + int(binary.LittleEndian.Uint32(bz[bzPayloadOffset:]))
	length := int(binary.LittleEndian.Uint32(bz[bzPayloadLength:]))
	if length < bzPayloadTrailer || start+length > len(bz) {
		return nil, fmt.Errorf("read bzImage: payload %d+%d of %d bytes", start, length, len(bz))
	}
	return bz[start : start+length-bzPayloadTrailer], nil
}
