# make demo and make test do all their own set-up. Beforehand a machine needs
# apt, git, make and Go 1.24 or later.
GO ?= go
# The last staticcheck that Go 1.24 can build; it runs on later ones too.
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.6.1
FUZZTIME ?= 10s
export CGO_ENABLED = 0

.PHONY: build demo test check deps fmt vet unit race fuzz static lab xenstored bench clean

build: ## the static binary, bin/xen-disk
	$(GO) build -trimpath -ldflags '-s -w' -o bin/xen-disk .

demo: ## boots real Xen and runs the two examples of the README on it
	$(GO) run ./internal/lab/demo

test: deps check race fuzz static xenstored lab ## everything; what CI runs

check: fmt vet unit ## the inner loop

deps:
	sh internal/lab/deps.sh gcc libc6-dev file

fmt:
	@test -z "$$(gofmt -l .)" || { gofmt -d .; exit 1; }

vet:
	$(GO) vet ./...
	$(GO) vet -tags lab,realxenstored ./...
	$(GO) run $(STATICCHECK) ./...
	$(GO) run $(STATICCHECK) -tags lab,realxenstored ./...

unit:
	$(GO) test ./...

race:
	CGO_ENABLED=1 $(GO) test -race ./...

# Each fuzz target for a while, from its corpus.
fuzz:
	@set -e; for pkg in $$($(GO) list ./...); do \
		for f in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz' || true); do \
			echo "$$pkg $$f"; $(GO) test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) $$pkg; \
		done; \
	done

clean:
	rm -rf bin
