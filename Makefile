# Run "make" for the list of targets.

.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null)
LDFLAGS := -s -w $(if $(VERSION),-X main.buildVersion=$(VERSION))
PREFIX  ?= /usr/local
IMAGE   ?= lifeboat:$(or $(VERSION),devel)
PKG     ?= ./...
RUN     ?=
BENCH   ?= .
FUZZTIME ?= 5s
TOOLS   := bin/tools

# Tools are built from modules of their own, so that what they need never
# weighs on lifeboat's go.mod. Each is rebuilt when its module changes.
ETCD_VERSIONS := 3.5 3.6 3.7
ETCD_TOOLS := $(foreach v,$(ETCD_VERSIONS),$(TOOLS)/etcd-$(v)/etcd $(TOOLS)/etcd-$(v)/etcdctl $(TOOLS)/etcd-$(v)/etcdutl)
TEST_TOOLS := $(ETCD_TOOLS) $(TOOLS)/versitygw
MODULES := . $(sort $(patsubst %/go.mod,%,$(wildcard internal/tools/*/go.mod)))

# tool(output, module folder, package) builds one program.
tool = cd internal/tools/$(2) && CGO_ENABLED=0 go build -trimpath -ldflags='-s -w' -o $(abspath $(1)) $(3)

.PHONY: help build test demo lint vuln bench fuzz-short tools install image clean

help: ## this list
	@echo "lifeboat: make TARGET"; echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' Makefile
	@echo; echo "Variables: PKG=./internal/seal RUN=TestName BENCH=Regexp FUZZTIME=$(FUZZTIME) PREFIX=$(PREFIX)"

build: ## bin/lifeboat, one static binary
	CGO_ENABLED=0 go build -trimpath -ldflags='$(LDFLAGS)' -o bin/lifeboat ./cmd/lifeboat

test: $(TEST_TOOLS) ## all tests, with real etcd 3.5, 3.6, 3.7 and a real S3 server
	go test $(if $(RUN),-run '$(RUN)') -timeout 20m $(PKG)

demo: build ## back up, destroy, restore and prove it, on this machine, without any set-up
	bin/lifeboat demo

lint: $(TOOLS)/staticcheck ## gofmt, vet, staticcheck, and tidy modules
	@unformatted=$$(git ls-files -z --cached --others --exclude-standard '*.go' | xargs -0 -r ls -d 2>/dev/null | xargs -r gofmt -l); \
	if [ -n "$$unformatted" ]; then echo "not formatted by gofmt:"; echo "$$unformatted"; exit 1; fi
	go vet ./...
	$(TOOLS)/staticcheck ./...
	@for module in $(MODULES); do echo "go mod tidy -diff  # $$module"; (cd $$module && go mod tidy -diff); done

vuln: ## known vulnerabilities, if the database can be reached
	@if ! curl -fsS --max-time 10 -o /dev/null https://vuln.go.dev/index/db.json 2>/dev/null; then \
		echo "vuln: skipped: https://vuln.go.dev can't be reached"; \
	else go run golang.org/x/vuln/cmd/govulncheck@v1.1.4 ./...; fi

bench: $(TEST_TOOLS) ## benchmarks; docs/performance.md says what to look at
	go test -run '^$$' -bench '$(BENCH)' -benchmem -timeout 60m $(PKG)

fuzz-short: ## every fuzz target for FUZZTIME
	@for package in $$(git grep -l --untracked '^func Fuzz' -- '*_test.go' | xargs -n 1 dirname | sort -u); do \
		for target in $$(grep -ho '^func Fuzz[A-Za-z0-9_]*' $$package/*_test.go | cut -d ' ' -f 2); do \
			echo "fuzz $$package $$target"; \
			go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) ./$$package; \
		done; \
	done

tools: $(TEST_TOOLS) $(TOOLS)/staticcheck ## the servers and linters that tests need, into bin/tools

$(TOOLS)/versitygw: internal/tools/versitygw/go.mod internal/tools/versitygw/go.sum
	$(call tool,$@,versitygw,github.com/versity/versitygw/cmd/versitygw)

$(TOOLS)/staticcheck: internal/tools/lint/go.mod internal/tools/lint/go.sum
	$(call tool,$@,lint,honnef.co/go/tools/cmd/staticcheck)

# etcd-3.5/etcdctl is built from module etcd35, package etcdctl/v3; etcd itself
# is the package server/v3.
define etcd_tools
$(TOOLS)/etcd-$(1)/%: internal/tools/etcd$(subst .,,$(1))/go.mod internal/tools/etcd$(subst .,,$(1))/go.sum
	@mkdir -p $$(@D)
	$$(call tool,$$@,etcd$(subst .,,$(1)),go.etcd.io/etcd/$$(if $$(filter etcd,$$*),server,$$*)/v3)
endef
$(foreach v,$(ETCD_VERSIONS),$(eval $(call etcd_tools,$(v))))

install: build ## bin/lifeboat to PREFIX/bin
	install -D -m 0755 bin/lifeboat $(DESTDIR)$(PREFIX)/bin/lifeboat

image: ## a container image; GO_IMAGE and BASE_IMAGE choose what it is made from
	docker build --build-arg VERSION='$(VERSION)' $(if $(GO_IMAGE),--build-arg GO_IMAGE='$(GO_IMAGE)') \
		$(if $(BASE_IMAGE),--build-arg BASE_IMAGE='$(BASE_IMAGE)') -t '$(IMAGE)' .

clean: ## remove bin
	rm -rf bin
