# One way to run it, one way to test it; both fetch what they need first and may run side by side.
SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help run test tools sqlx deny faults fuzz bench

# Prints how long a phase took; a phase that fails ends the recipe with its own output.
define phase
printf '%-8s' '$(1)'; begin=$$(date +%s); $(2) || exit 1; printf ' %ss\n' "$$(( $$(date +%s) - begin ))"
endef

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p' Makefile | expand -t 16

run: ## fetch what is missing, build, and run `tollgate dev` (ARGS="--ports auto" …) until Ctrl-C
	@tools/prepare.sh
	@echo 'build: tollgate (minutes the first time, seconds after)' >&2
	@cargo build -p tollgate --bin tollgate
	@exec target/debug/tollgate dev $(ARGS)

test: ## every check: format, lints, bans, unit, integration, fault smoke
	@tools/prepare.sh test
	@echo 'checks run quietly; a first build takes minutes'
	@$(call phase,format,cargo fmt --all --check)
	@$(call phase,lints,cargo clippy -q --workspace --all-targets -- -D warnings)
	@$(call phase,protos,tools/protos.sh)
	@$(call phase,bans,tools/deny.sh)
	@echo 'tests   building, then running'
	@cargo nextest run --workspace --cargo-quiet

tools: ## fetch what `run` and `test` need, and nothing else
	@tools/prepare.sh test

sqlx: ## check the SQL against the schema and refresh .sqlx, after a change of either
	@tools/sqlx.sh

deny: ## licences, banned crates and sources of the dependency tree
	@tools/prepare.sh test
	@tools/deny.sh

faults: ## fault tests in their long forms, a line a fault (FAULTS=F1,F6 SECONDS=600; all: hours)
	@tools/prepare.sh test
	@tools/faults.sh "$(FAULTS)" "$(SECONDS)"

fuzz: ## the fuzz targets, a minute each (ARGS="600 journal": seconds, targets)
	@tools/fuzz.sh $(ARGS)

bench: ## the measurements behind benches/RESULTS.md, or one (ARGS="edge", "instructions" …)
	@tools/prepare.sh
	@benches/run.sh $(ARGS)
