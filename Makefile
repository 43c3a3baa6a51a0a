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
RACE    ?=
BENCH   ?= .
FUZZTIME ?= 5s
TOOLS   := bin/tools

# Tools are built from modules of their own, so that what they need never
# weighs on lifeboat's go.mod. Each is rebuilt when its module changes.
ETCD_VERSIONS := 3.5 3.6 3.7
ETCD_TOOLS := $(foreach v,$(ETCD_VERSIONS),$(TOOLS)/etcd-$(v)/etcd $(TOOLS)/etcd-$(v)/etcdctl $(TOOLS)/etcd-$(v)/etcdutl)
TEST_TOOLS := $(ETCD_TOOLS) $(TOOLS)/versitygw
KUBE_VERSION := v1.36.3
KUBE_NAMES := kube-apiserver kube-controller-manager kube-scheduler kubeadm kubectl kubelet
KUBE_TOOLS := $(addprefix $(TOOLS)/kube/,$(KUBE_NAMES))
DEPLOY_TOOLS := $(KUBE_TOOLS) $(TOOLS)/helm $(TOOLS)/kustomize $(TOOLS)/versitygw $(foreach p,etcd etcdctl etcdutl,$(TOOLS)/etcd-3.6/$(p))
MODULES := . $(sort $(patsubst %/go.mod,%,$(wildcard internal/tools/*/go.mod))) internal/web/browsertest

# tool(output, module folder, package) builds one program.
tool = cd internal/tools/$(2) && CGO_ENABLED=0 go build -trimpath -ldflags='-s -w' -o $(abspath $(1)) $(3)

.PHONY: help build test test-page test-alerts test-deploy test-replay simulate soak demo image-test e2e e2e-full lint vuln bench fuzz-short tools tools-e2e install image sbom clean

help: ## this list
	@echo "lifeboat: make TARGET"; echo
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' Makefile
	@echo; echo "Variables: PKG=./internal/seal RUN=TestName RACE=1 BENCH=Regexp FUZZTIME=$(FUZZTIME) PREFIX=$(PREFIX)"

build: ## bin/lifeboat, one static binary
	CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags='$(LDFLAGS)' -o bin/lifeboat ./cmd/lifeboat

test: $(TEST_TOOLS) ## all tests, with real etcd 3.5, 3.6, 3.7 and a real S3 server
	$(if $(RACE),CGO_ENABLED=1 )go test $(if $(RACE),-race -short )$(if $(RUN),-run '$(RUN)') -timeout 20m $(PKG)

simulate: ## the agent through 1,000 simulated months and 20 years, each by its seed
	go test -count=1 -timeout 20m ./internal/agent -run Simulation -seeds 1000 -days 30 -years 20

test-replay: $(TEST_TOOLS) ## what is recorded of real etcds in trouble comes back exactly; LIFEBOAT_SEED repeats a run
	LIFEBOAT_POINTS=50 LIFEBOAT_ROUNDS=2 LIFEBOAT_KILLS=51 go test -v -count=1 -timeout 30m $(if $(RUN),-run '$(RUN)') ./internal/replay

soak: $(TEST_TOOLS) ## for an evening: ten times the simulation, 200 points a version, 300 kills, fuzzing for a minute a target
	go test -count=1 -timeout 120m ./internal/agent -run Simulation -seeds 10000 -days 30 -years 200
	LIFEBOAT_POINTS=200 LIFEBOAT_ROUNDS=8 LIFEBOAT_KILLS=300 go test -v -count=1 -timeout 120m ./internal/replay
	$(MAKE) fuzz-short FUZZTIME=1m

test-alerts: $(TEST_TOOLS) ## backups stop, and the alarm arrives through a real Prometheus and Alertmanager
	LIFEBOAT_TEST_ALERTS=1 go test -count=1 -timeout 10m -run '$(or $(RUN),Alert|Promtool)' ./cmd/lifeboat ./internal/metrics

test-page: ## the status page, in a real Chromium
	cd internal/web/browsertest && go test -count=1 $(if $(RUN),-run '$(RUN)') ./...

test-deploy: $(DEPLOY_TOOLS) $(TOOLS)/staticcheck ## as root: chart, kustomization, units and policies, on a real API server
	go vet -tags deploy ./internal/deploytest ./restore/kubeapi
	$(TOOLS)/staticcheck -tags deploy ./internal/deploytest ./restore/kubeapi
	go test -count=1 $(if $(RUN),-run '$(RUN)') -tags deploy -timeout 15m ./internal/deploytest ./restore/kubeapi

image-test: build $(TOOLS)/sbom $(TOOLS)/versitygw $(TOOLS)/etcd-3.6/etcd ## as root: build the image, look into it, run it without rights
	go mod download
	LIFEBOAT_E2E=1 go test -count=1 -v -timeout 20m ./deploy/image

e2e: build $(DEPLOY_TOOLS) $(TOOLS)/pause ## as root: the chart on a real kubeadm node, and control planes of one and three nodes lost in every way and restored
	LIFEBOAT_E2E=1 go test -count=1 -v -timeout 30m $(if $(RUN),-run '$(RUN)') ./internal/realplane/e2e

e2e-full: build $(DEPLOY_TOOLS) $(TOOLS)/pause ## as root: that, and the same restores by hand, which are the yardstick for the times
	LIFEBOAT_E2E=full go test -count=1 -v -timeout 60m $(if $(RUN),-run '$(RUN)') ./internal/realplane/e2e

demo: build ## back up, destroy, restore and prove it, on this machine, without any set-up
	bin/lifeboat demo

lint: $(TOOLS)/staticcheck ## gofmt, vet, staticcheck, and tidy modules
	@unformatted=$$(git ls-files -z --cached --others --exclude-standard '*.go' | xargs -0 -r ls -d 2>/dev/null | xargs -r gofmt -l); \
	if [ -n "$$unformatted" ]; then echo "not formatted by gofmt:"; echo "$$unformatted"; exit 1; fi
	go vet ./...
	$(TOOLS)/staticcheck ./...
	cd internal/web/browsertest && go vet ./... && ../../../$(TOOLS)/staticcheck ./...
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

tools-e2e: $(DEPLOY_TOOLS) $(TOOLS)/pause $(TOOLS)/sbom ## Kubernetes, helm and kustomize, for test-deploy, image-test and e2e

$(TOOLS)/versitygw: internal/tools/versitygw/go.mod internal/tools/versitygw/go.sum
	$(call tool,$@,versitygw,github.com/versity/versitygw/cmd/versitygw)

# The six are built at once, since most of their code is the same.
$(KUBE_TOOLS) &: internal/tools/kube/go.mod internal/tools/kube/go.sum
	@mkdir -p $(TOOLS)/kube
	cd internal/tools/kube && CGO_ENABLED=0 go build -trimpath -o $(abspath $(TOOLS)/kube)/ \
		-ldflags='-s -w $(foreach p,k8s.io/component-base/version k8s.io/client-go/pkg/version,-X $(p).gitVersion=$(KUBE_VERSION) -X $(p).gitMajor=1 -X $(p).gitMinor=36)' \
		$(addprefix k8s.io/kubernetes/cmd/,$(KUBE_NAMES))
	@touch $(KUBE_TOOLS)

$(TOOLS)/kustomize: internal/tools/kustomize/go.mod internal/tools/kustomize/go.sum
	$(call tool,$@,kustomize,sigs.k8s.io/kustomize/kustomize/v5)

# After the Kubernetes tools, since they share most of what is compiled.
$(TOOLS)/helm: internal/tools/helm/go.mod internal/tools/helm/go.sum | $(KUBE_TOOLS)
	$(call tool,$@,helm,helm.sh/helm/v4/cmd/helm)

$(TOOLS)/sbom: internal/tools/sbom/main.go internal/tools/sbom/go.mod internal/tools/sbom/go.sum
	$(call tool,$@,sbom,.)

$(TOOLS)/pause: internal/realplane/pause/main.go
	CGO_ENABLED=0 go build -trimpath -ldflags='-s -w' -o $@ ./internal/realplane/pause

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

sbom: build $(TOOLS)/sbom ## bin/lifeboat.cdx.json: every module in the binary, with version and hash (CycloneDX)
	$(TOOLS)/sbom bin/lifeboat '$(VERSION)' > bin/lifeboat.cdx.json

image: ## a container image; GO_IMAGE and BASE_IMAGE choose what it is made from
	docker build --build-arg VERSION='$(VERSION)' --build-arg REVISION="$$(git rev-parse HEAD 2>/dev/null)" $(if $(GO_IMAGE),--build-arg GO_IMAGE='$(GO_IMAGE)') \
		$(if $(BASE_IMAGE),--build-arg BASE_IMAGE='$(BASE_IMAGE)') -t '$(IMAGE)' .

clean: ## remove bin
	rm -rf bin
