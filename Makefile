# make help lists the targets. `make demo` and `make test` install what they need and say so.
SHELL := /bin/bash
BUILD := .build
BIN := $(BUILD)/bin
# Where what is built goes, for the scripts and tests that run it.
export DIVVY_BUILD := $(abspath $(BUILD))

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## divvy, the guard for MPS and the static divvy-hook, into .build/bin
	@packaging/build.sh $(BIN) release

# DESTDIR is where a package is put together; what is installed knows nothing of it.
AT := $(or $(PREFIX),/usr/local)

.PHONY: install
install: ## copy them and the systemd units below /usr/local (after make build, as root)
	@[ -x $(BIN)/divvy-hook ] || { echo "error: nothing is built yet" >&2; echo "hint: make build" >&2; exit 1; }
	@mkdir -p $(DESTDIR)$(AT)/bin 2>/dev/null; [ -w $(DESTDIR)$(AT)/bin ] || \
	  { echo "error: cannot write to $(DESTDIR)$(AT)/bin" >&2; echo "hint: sudo make install" >&2; exit 1; }
	@install -D -m 755 -t $(DESTDIR)$(AT)/bin $(BIN)/divvy $(BIN)/divvy-hook
	@install -D -m 644 -t $(DESTDIR)$(AT)/lib/divvy $(BIN)/libdivvy_mps_guard.so
	@mkdir -p $(DESTDIR)$(AT)/lib/systemd/system
	@for unit in packaging/divvy*.service packaging/divvy.socket; do \
	  sed 's:/usr/local/bin/:$(AT)/bin/:' $$unit >$(DESTDIR)$(AT)/lib/systemd/system/$${unit##*/}; done
	@echo "installed divvy and divvy-hook in $(DESTDIR)$(AT)/bin, and their units in $(DESTDIR)$(AT)/lib/systemd/system"

.PHONY: demo
demo: ## GPUs in real Podman containers on a simulated host
	@demo/demo.sh

.PHONY: test
test: ## every test; ends with "N passed, N failed, N skipped"
	@tests/run.sh

# sudo keeps no variables: those of the checks are handed over by name.
AS_ROOT := $(if $(filter 0,$(shell id -u)),env,sudo env)
GPU_VARIABLES = DIVVY_TEST_GPU=1 DIVVY_GPU=$(DIVVY_GPU) DIVVY_GPU_KEEP_MODE=$(DIVVY_GPU_KEEP_MODE)

.PHONY: test-gpu
test-gpu: ## MPS on a real GPU that nobody uses, as root (DIVVY_GPU=<index>); says first what it does to it
	@cargo build --quiet --locked -p divvy -p divvy-mps-guard
	@cargo --config "target.'cfg(unix)'.runner = '$(AS_ROOT) $(GPU_VARIABLES)'" test --quiet --locked --test gpu

.PHONY: check
check: ## formatting, lints, dependency policy
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo deny check bans licenses sources

.PHONY: bench
bench: ## system calls, memory and times, paired in one run
	@packaging/build.sh $(BIN) release
	@tests/bench.sh
	@tests/bench-engines.sh
	@tests/bench-leases.sh

.PHONY: clean
clean: ## remove what was built, trees and images too
	cargo clean
	@# The trees belong to root.
	rm -rf $(BUILD) 2>/dev/null || sudo rm -rf $(BUILD)
