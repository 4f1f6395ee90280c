# Muster: everything a developer or an operator on trial needs. Go and make are enough, except where said.
export CGO_ENABLED ?= 0
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -buildid= -X main.version=$(VERSION)
GO ?= go
NODES   ?= 3
USERS   ?= 0
DOMAIN  ?= example.test
PORTS   ?= 0
DIR     ?= run
SEEDS   ?= 1000

.PHONY: $(shell sed -n 's/^\([a-z-]*\):.*/\1/p' Makefile)
help: ## Show this
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 14
	@echo 'run takes NODES= DOMAIN= USERS= PORTS= DIR= CLEAN=1; run-node takes NODE=; sim takes SEEDS='

run: build ## Three nodes on this machine, with certificates and users, until Ctrl-C
	@bin/muster demo run --dir $(DIR) --nodes $(NODES) --domain $(DOMAIN) --users $(USERS) --ports $(PORTS) $(if $(CLEAN),--clean)
run-node: build ## Start a node of it again: NODE=2
	@bin/muster demo node --dir $(DIR) $(NODE)

build: ## Build bin/musterd, bin/muster and bin/musterbench
	@mkdir -p bin
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/ ./cmd/musterd ./cmd/muster ./cmd/musterbench

test: ## All tests
	$(GO) test ./...

race: ## The core's tests under the race detector (needs a C compiler)
	.ci/run race

sim: ## Virtual clusters under faults: SEEDS= many
	$(GO) test ./cmd/musterd -run '^TestSim$$' -count=1 -timeout 0 -args -seeds $(SEEDS)

fuzz: ## Each fuzz target for ten seconds: FUZZTIME=
	FUZZTIME=$(or $(FUZZTIME),10s) .ci/run fuzz

lint: ## Format, vet and staticcheck
	.ci/run lint
bench: ## Benchmarks of the hot path
	$(GO) test -run '^$$' -bench . -benchmem ./router/... ./feature/

bench-peers: build ## Compare with ejabberd and Prosody, which are installed as packages
	testdata/peers/run.sh

interop: build ## Foreign clients on a cluster of three, with nodes killed (installs them with pip, npm and apt)
	testdata/interop/run.sh

crash: build ## Real clusters killed, stopped, restored and attacked; SHORT=1 for the short form
	$(GO) test -tags crash -count=1 -v -timeout 30m ./cmd/musterd/crashtest $(if $(SHORT),-short)

chaos: build ## Kill, stop, cut off and spoil nodes under load from clients that resume; SHORT=1, PEERS=1 for ejabberd beside it
	$(GO) test -tags chaos -count=1 -v -timeout 90m -run '^TestChaos$(if $(PEERS),Peers)$$' ./cmd/musterd/crashtest $(if $(SHORT),-short)

check: ## All that CI runs
	.ci/run

generate: ## Write the messages of log entries anew (needs protoc and protoc-gen-go)
	protoc --go_out=. --go_opt=paths=source_relative $$(git ls-files '*.proto')
