# Two commands matter: `make demo` migrates a real VM in the lab, `make test` proves the product. Both do all their set-up.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# Each step says what it does and how long it took.
define timed
	@echo "==> $(1)"; start=$$SECONDS; $(2) && echo "<== $(1): $$((SECONDS - start)) s"
endef

.PHONY: help
help: ## Say what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

.PHONY: demo
demo: setup build ## Migrate one running VM in the lab and show that nothing is lost (KEEP=1 leaves it running)
	@target/debug/demo $(if $(KEEP),--keep)

.PHONY: test
test: setup check build ## Everything that must hold: quick checks, then every part end to end
	$(call timed,tests,cargo test --workspace --quiet -- --test-threads=3)

.PHONY: test-all
test-all: test ## test, and the slow real parts (python-gitlab against simulated GitLab among them)
	$(call timed,slow tests,cargo test --workspace --quiet -- --ignored --skip three_events --test-threads=3)

.PHONY: explore
explore: ## Explore the decisions with three events in every run: long
	$(call timed,explore,cargo test --profile explore --test model -- --nocapture --include-ignored --test-threads=2)

.PHONY: soak
soak: setup build ## Migrations with every fault at every moment, then random ones, until MINUTES=10 or MIGRATIONS=n; SEED=n repeats one, GUESTS=4 and COMPLETE=20 say how many
	@target/debug/soak $(if $(MINUTES),--minutes $(MINUTES)) $(if $(MIGRATIONS),--migrations $(MIGRATIONS)) --guests $(or $(GUESTS),4) --complete $(or $(COMPLETE),20) $(if $(SEED),--seed $(SEED))

.PHONY: bench-naive
bench-naive: setup build ## The same guest moved by a plain block copy and by Drover: what each loses (RUNS=2)
	@target/debug/bench-naive --runs $(or $(RUNS),2)

.PHONY: check
check: deny ## The quick loop: format, lints, unit tests, generated files
	$(call timed,format,cargo fmt --all --check)
	$(call timed,clippy,cargo clippy --workspace --all-targets --quiet -- -D warnings)
	$(call timed,clippy without the host side,cargo clippy --no-default-features --quiet -- -D warnings)
	$(call timed,unit tests,cargo test --lib --quiet)
	$(call timed,custom resource definitions are as generated,cargo run --quiet -- crds | diff crds/drover.yaml -)

.PHONY: deny
deny: target/tools/cargo-deny/bin/cargo-deny
	$(call timed,licences and sources of dependencies,target/tools/cargo-deny/bin/cargo-deny --log-level error --config .cargo/deny.toml check licenses bans sources)

target/tools/cargo-deny/bin/cargo-deny:
	$(call timed,build cargo-deny,cargo install --quiet cargo-deny --version 0.20.2 --locked --root target/tools/cargo-deny)

.PHONY: crds
crds: ## Generate crds/ from src/api
	cargo run --quiet -- crds > crds/drover.yaml

.PHONY: build
build: ## Build the program and the lab
	$(call timed,build,cargo build --quiet --workspace)

.PHONY: setup
setup: ## Install what the lab needs: Debian packages, and the tools pinned in tests/tools
	@tests/lab/setup.sh
	$(call timed,pinned tools,cargo run --quiet -p drover-lab --bin lab-tools)
