# The front door: `make` lists the targets.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
DOCS   := .venv-docs
READY  := $(VENV)/.ready
DEV    := $(VENV)/.ready-dev
ARGS   ?=
# what tests need; those that need more are not in `make test`
LIBRARIES = pristine 0001 0006 patched partial fast state+fast partial+fast mutants partial@mutants \
            fast@mutants state-on-fast@mutants museum asan-ubsan
# what measures no time runs on all cores
SIDE_BY_SIDE = -n auto --maxprocesses 8 --dist worksteal
# unless ARGS cuts the cache in its own way
SEGMENTS = $(if $(filter --segments% --boundaries%,$(ARGS)),,--segments 4)

.DEFAULT_GOAL := help
.PHONY: help run gate bench fuzz mutants test test-all test-part test-timing vendor lib lint dist docs clean distclean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  UPSTREAM_DIR=/path make run   use your own llama.cpp or ggml checkout"
	@echo "  make run ARGS='--threads 8'   more options for fa-harness run"

run: $(READY) ## build the patched library and compare it with the oracle
	@$(BIN)/fa-harness run $(SEGMENTS) $(ARGS)

gate: $(READY) ## compare the patched library with its baseline, as a CI job does
	@$(BIN)/fa-harness gate $(ARGS)

bench: $(READY) ## measure what the state costs; needs a machine that does nothing else
	@$(BIN)/fa-harness bench $(ARGS)

fuzz: $(READY) ## run cases of all kinds at random for a minute
	@$(BIN)/fa-harness fuzz $(ARGS)

mutants: $(READY) ## put faults into the kernel and see whether the cases notice
	@$(BIN)/fa-harness mutants $(ARGS)

test: lint ## lint, types and the tests that take ten minutes, with the builds that they need
	@$(BIN)/fa-harness build $(LIBRARIES)
	@OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest $(SIDE_BY_SIDE) -m 'not full and not timing' $(ARGS)

test-all: lint test-part test-timing ## every test, those that measure time alone at the end

test-part: $(DEV) ## every test in ARGS but those that measure time
	@$(BIN)/fa-harness build $(LIBRARIES) tsan coverage
	@$(BIN)/python -m pytest -m 'not timing' $(ARGS)

test-timing: $(DEV) ## the tests that measure time
	@$(BIN)/fa-harness build $(LIBRARIES)
	@$(BIN)/python -m pytest -m timing

vendor: $(READY) ## fetch the upstream sources and apply the patches
	@$(BIN)/fa-harness vendor

lib: $(READY) ## build the patched library
	@$(BIN)/fa-harness build patched

lint: $(DEV) ## ruff and mypy --strict
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

dist: $(DEV) ## build wheel and sdist in dist/
	@$(BIN)/python -m build --no-isolation --outdir dist .

docs: $(DOCS)/.ready ## build the documentation's site in build/site
	@NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --quiet --strict
	@echo build/site/index.html

clean: ## delete what was built; sources and .venv stay
	rm -rf build .pytest_cache .mypy_cache .ruff_cache .hypothesis

distclean: clean ## delete all that is not in git: .venv and fetched sources, too
	rm -rf $(VENV) $(DOCS) dist vendor/cache vendor/src

$(DOCS)/.ready: requirements-docs.lock
	@$(PYTHON) -m venv $(DOCS)
	@$(DOCS)/bin/python -m pip --disable-pip-version-check install -qq --require-hashes -r $<
	@touch $@

# One at a time: two `make run` may start together in a fresh checkout.
$(READY): requirements.lock requirements-build.lock pyproject.toml
	@$(PYTHON) tools/bootstrap.py $(VENV) run

$(DEV): requirements-dev.lock requirements-build.lock pyproject.toml
	@$(PYTHON) tools/bootstrap.py $(VENV) dev
