# `make serve` serves the embedded model, `make test` runs every test; both set up .venv first.
#   GPU=cuda|vulkan|metal  builds llama.cpp for a GPU (GPU=cpu goes back); remembered until changed
#   MODEL=… ARGS=…         what to serve, further flags of `ocak serve`
#   PYTHON=…  VENV=…       another interpreter (3.11 to 3.13), another place for the environment

VENV ?= .venv
MODEL ?= embedded
ARGS ?=
BIN := $(VENV)/bin
BUILT_GPU := $(shell cat $(VENV)/.gpu 2>/dev/null)
GPU ?= $(or $(BUILT_GPU),cpu)
IS_SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	$$p -c '$(IS_SUPPORTED)' >/dev/null 2>&1 && { echo $$p; break; }; done)

FLAGS_cuda := -DGGML_CUDA=on
FLAGS_vulkan := -DGGML_VULKAN=on
FLAGS_metal := -DGGML_METAL=on
INSTALL := $(BIN)/python scripts/install.py
ENGINE := $(VENV)/.engine-$(GPU)-$(shell sed -n 's/^llama-cpp-python==//p' requirements.lock)
RUN := $(VENV)/.run
DEV := $(VENV)/.dev
BENCH := $(VENV)/.bench

.DEFAULT_GOAL := help
.PHONY: help serve test check lint unit bench docs lock clean gpu-is-known
.DELETE_ON_ERROR:

help: ## show the targets
	@sed -n 's/^# \{0,1\}//p;/^$$/q' Makefile
	@echo
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 14

serve: $(RUN) ## serve MODEL (the embedded one) on port 8080
	@exec $(BIN)/ocak serve $(MODEL) $(ARGS)

test: lint ## lint, check the types and the layers, run all tests
	$(BIN)/pytest

check: lint unit ## the inner loop: as `make test`, with the fast tests only

lint: $(DEV)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

unit: $(DEV)
	$(BIN)/pytest tests/unit

bench: $(BENCH) ## measure against the committed baseline
	$(BIN)/python -m bench $(ARGS)

docs: $(DEV) ## write docs/cli.md anew
	$(BIN)/python scripts/cli_reference.py

lock: ## pin the dependencies anew (UPGRADE=1: to the newest)
	$(PYTHON) -m venv build/lock
	build/lock/bin/pip install --quiet uv
	$(LOCK) -o requirements.lock pyproject.toml
	$(LOCK) -o requirements-dev.lock -c requirements.lock --extra dev pyproject.toml

LOCK = build/lock/bin/uv pip compile --quiet --universal --python-version 3.11 $(if $(UPGRADE),--upgrade) \
	--no-header --no-annotate --no-emit-index-url --no-emit-find-links

clean: ## remove the environment and everything generated
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment: an interpreter, llama.cpp built for GPU, what ocak needs to run, what its tests need.

gpu-is-known:
	@case "$(GPU)" in cpu|cuda|vulkan|metal) ;; *) \
		echo "GPU=$(GPU) is unknown; choose cuda, vulkan, metal or cpu" >&2; exit 2;; esac

$(BIN)/python:
	@[ -n "$(PYTHON)" ] && $(PYTHON) -c '$(IS_SUPPORTED)' || { \
		echo "ocak needs Python 3.11, 3.12 or 3.13; name one with: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

# pip's cache may hold a wheel built for another GPU, so a build for a GPU neither reads nor writes it.
$(ENGINE): | gpu-is-known $(BIN)/python
	@rm -f $(VENV)/.engine-* $(RUN) $(DEV) $(BENCH)
ifeq ($(GPU),cpu)
	@echo "Installing llama.cpp: compiled on this machine in some minutes, unless pip has done so before"
	@$(INSTALL) --no-deps $(if $(filter-out cpu,$(BUILT_GPU)),--force-reinstall) \
		-c requirements.lock llama-cpp-python
else
	@echo "Compiling llama.cpp for $(GPU): some minutes"
	@CMAKE_ARGS="$(FLAGS_$(GPU)) $(CMAKE_ARGS)" FORCE_CMAKE=1 $(INSTALL) --no-deps --no-cache-dir \
		--force-reinstall --no-binary llama-cpp-python -c requirements.lock llama-cpp-python
endif
	@echo $(GPU) > $(VENV)/.gpu
	@touch $@

$(RUN): $(ENGINE) requirements.lock pyproject.toml
	@echo "Installing ocak"
	@$(INSTALL) -r requirements.lock
	@$(INSTALL) --no-deps --editable .
	@touch $@

$(DEV): $(RUN) requirements-dev.lock
	@echo "Installing what the tests need"
	@$(INSTALL) -r requirements-dev.lock
	@touch $@

$(BENCH): $(DEV)
	@echo "Installing what draws the benchmarks"
	@$(INSTALL) -c requirements-dev.lock --editable '.[bench]'
	@touch $@
