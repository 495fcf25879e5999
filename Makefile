# make demo and make test do all their own set-up. Beforehand a machine needs
# apt, git, make and Go 1.24 or later, and they are run as root.
GO ?= go
COMMIT ?= $(shell git describe --always --dirty 2>/dev/null)
# The last staticcheck that Go 1.24 can build; it runs on later ones too.
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.6.1
FUZZTIME ?= 10s
BUILD = $(GO) build -trimpath -ldflags '-s -w -X main.commit=$(COMMIT)'
# The house's bound on the stripped binary: 12 MiB.
MAXBYTES := 12582912
export CGO_ENABLED = 0

.PHONY: build demo test check deps fmt vet unit race fuzz static interop judges lab bench clean

build: ## the static binary, bin/xen-disk
	$(BUILD) -o bin/xen-disk .

demo: ## boots real Xen and runs the two examples of the README on it
	$(GO) run ./internal/lab/demo

test: deps check race fuzz static interop lab ## everything; what CI runs

check: fmt vet unit ## the inner loop

# What the tests need and a bare Debian may lack: gcc for the race detector,
# file to look at the binary, losetup and mkfs for block devices.
deps:
	$(call install,gcc:gcc file:file losetup:util-linux mkfs.ext2:e2fsprogs \
		/usr/include/stdlib.h:libc6-dev)

# Other people's programs, which judge our images and our NBD server.
judges:
	$(call install,qemu-img:qemu-utils qemu-io:qemu-utils 7zz:7zip \
		vhdimount:libvhdi-utils fusermount:fuse3 fio:fio nbdcopy:libnbd-bin)

# install takes command:package pairs, or file:package, and installs the
# packages of those that are missing.
define install
@PATH=$$PATH:/sbin:/usr/sbin; missing=; \
for p in $(1); do \
	command -v $${p%%:*} >/dev/null || test -e $${p%%:*} || \
		missing="$$missing $${p#*:}"; \
done; \
if [ -n "$$missing" ]; then \
	apt-get update -q && DEBIAN_FRONTEND=noninteractive \
	apt-get install -q -y --no-install-recommends $$missing; \
fi
endef

fmt:
	@test -z "$$(gofmt -l .)" || { gofmt -d .; exit 1; }

vet:
	$(GO) vet ./...
	$(GO) vet -tags lab,realxenstored,interop ./...
	$(GO) run $(STATICCHECK) ./...
	$(GO) run $(STATICCHECK) -tags lab,realxenstored,interop ./...

unit:
	$(GO) test ./...

# Crash enumerations have one goroutine: the detector has nothing to find there
# and takes ten times as long. They run in unit.
race:
	CGO_ENABLED=1 $(GO) test -race -timeout 20m -skip '^Test(Crash|EditsNeed|\w*SurvivesCrashes)' ./...

# Each fuzz target for a while, from its corpus.
fuzz:
	@set -e; for pkg in $$($(GO) list ./...); do \
		for f in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz' || true); do \
			echo "$$pkg $$f"; \
			$(GO) test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) \
				-fuzzminimizetime 20x $$pkg; \
		done; \
	done

# The binary is static and small, on both machines that it is made for.
static:
	@set -e; for arch in amd64 arm64; do \
		GOARCH=$$arch $(BUILD) -o bin/xen-disk-$$arch .; \
		file bin/xen-disk-$$arch | grep 'statically linked'; \
		if ldd bin/xen-disk-$$arch 2>/dev/null; then \
			echo "bin/xen-disk-$$arch is a dynamic executable"; exit 1; fi; \
		test $$(stat -c %s bin/xen-disk-$$arch) -lt $(MAXBYTES); \
	done

# Our images and our NBD server before other programs.
interop: judges
	$(GO) test -tags interop -count 1 -timeout 30m ./vhd/... ./nbd/... ./internal/cli/...

# Real Xen, real guests; one machine at a time.
lab: judges
	$(GO) test -tags lab -p 1 -count 1 -timeout 60m -v ./internal/lab/...

# The code around the copies, on the pretend machine: ratios, not Xen's speed.
# Then VHD beside QEMU, into docs/performance/vhd.md.
bench: build judges
	$(GO) test -run '^$$' -bench . ./ring ./reactor ./internal/blkback
	$(GO) run ./internal/bench

clean:
	rm -rf bin
