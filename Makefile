# The front door: `make` lists the targets.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
DOCS   := .venv-docs
READY  := $(VENV)/.ready
ARGS   ?=
# unless ARGS cuts the cache in its own way
SEGMENTS = $(if $(filter --segments% --boundaries%,$(ARGS)),,--segments 4)

.DEFAULT_GOAL := help
.PHONY: help run gate bench fuzz mutants test vendor lib lint docs clean distclean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  UPSTREAM_DIR=/path make run   use your own llama.cpp or ggml checkout"
	@echo "  make run ARGS='--threads 8'   more options for fa-harness run"

run: lib ## build the patched library and compare it with the oracle
	@$(BIN)/fa-harness run $(SEGMENTS) $(ARGS)

gate: lib ## compare the patched library with its baseline, as a CI job does
	@$(BIN)/fa-harness gate $(ARGS)

bench: $(READY) ## measure what the state costs; needs a machine that does nothing else
	@$(BIN)/fa-harness build pristine patched
	@$(BIN)/fa-harness bench $(ARGS)

fuzz: lib ## run cases of all kinds at random for a minute
	@$(BIN)/fa-harness fuzz $(ARGS)

mutants: $(READY) ## put faults into the kernel and see whether the cases notice
	@$(BIN)/fa-harness build mutants
	@$(BIN)/fa-harness mutants $(ARGS)

test: $(READY) ## build the libraries and run every test
	@$(BIN)/fa-harness build pristine 0001 patched mutants asan ubsan tsan
	@$(BIN)/python -m pytest $(ARGS)

vendor: $(READY) ## fetch the upstream sources and apply the patches
	@$(BIN)/fa-harness vendor

lib: $(READY) ## build the patched library
	@$(BIN)/fa-harness build patched

lint: $(READY) ## ruff and mypy --strict
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

docs: $(DOCS)/.ready ## build the documentation's site in build/site
	@NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --quiet --strict
	@echo build/site/index.html

clean: ## delete what was built; sources and .venv stay
	rm -rf build .pytest_cache .mypy_cache .ruff_cache .hypothesis

distclean: clean ## delete all that is not in git: .venv and fetched sources, too
	rm -rf $(VENV) $(DOCS) vendor/cache vendor/src

$(DOCS)/.ready: requirements-docs.lock
	@$(PYTHON) -m venv $(DOCS)
	@$(DOCS)/bin/python -m pip --disable-pip-version-check install -qq --require-hashes -r $<
	@touch $@

# One at a time: two `make run` may start together in a fresh checkout.
$(READY): requirements.lock requirements-build.lock pyproject.toml
	@$(PYTHON) tools/bootstrap.py $(VENV)
