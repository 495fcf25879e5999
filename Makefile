GO ?= go
build:
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -o bin/xen-disk .
.PHONY: build
