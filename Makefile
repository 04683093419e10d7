# Every target makes its own environment in .venv on first use. Nothing but Python 3.11 or newer and make is needed.
#   make demo    optimize a real problem with three surrogates and random search, and write a report
#   make test    the test suite, with the notebooks and the examples of the documentation
#   make carriers  what optional environments need; tests of these are skipped without it
# Variables: PYTHON (which python makes .venv), TORCH_INDEX (an index to take torch from, for a CPU-only build:
# TORCH_INDEX=https://download.pytorch.org/whl/cpu), DEMO_ARGS, PYTEST_ARGS, BENCH_ARGS, UCI_DATA (see benchmarks/uci.py).
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2
DEMO_ARGS ?=
PYTEST_ARGS ?=
BENCH_ARGS ?=
UCI_DATA ?=
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
	$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
METADATA := pyproject.toml setup.py constraints.txt
# One thread per process: the matrices are small, and threads of several processes get in each other's way.
export OMP_NUM_THREADS ?= 1
export MPLBACKEND ?= Agg

.PHONY: help install demo test lint format docs bench carriers clean
help:
	@echo "make demo | test | lint | docs | bench | format | install | carriers | clean"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "The pinned set of packages needs Python 3.11 or newer; $(PYTHON) is older or missing." \
			"Name another with: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
		echo "This Python cannot make virtual environments. On Debian or Ubuntu: sudo apt install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# Stamps, so that set-up runs once and again only when the metadata changed.
$(VENV)/.seqbdl-run: $(METADATA) | $(BIN)/python
	@echo "Installing seqbdl into $(VENV) (a few minutes the first time) ..."
	$(PIP_INSTALL) -e .
	@touch $@

$(VENV)/.seqbdl-dev: $(METADATA) | $(BIN)/python
	@echo "Installing seqbdl and its development tools into $(VENV) (a few minutes the first time) ..."
	$(PIP_INSTALL) -e ".[dev,docs,lab,bench,ax]"
	@touch $@ $(VENV)/.seqbdl-run

install: $(VENV)/.seqbdl-dev

demo: $(VENV)/.seqbdl-run
	$(BIN)/seqbdl demo $(DEMO_ARGS)

test: $(VENV)/.seqbdl-dev
	SEQBDL_QUICK=1 $(BIN)/pytest -n $(WORKERS) --nbmake tests notebooks $(PYTEST_ARGS)

lint: $(VENV)/.seqbdl-dev
	$(BIN)/ruff check
	.ci/link-tree
	MYPYPATH=build/typing $(BIN)/mypy -p seqbdl

format: $(VENV)/.seqbdl-dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: $(VENV)/.seqbdl-dev
	.ci/link-tree
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir site

bench: $(VENV)/.seqbdl-dev
	@for script in benchmarks/*.py; do \
		data=; \
		if [ "$$script" = benchmarks/uci.py ]; then \
			if [ -z "$(UCI_DATA)" ]; then echo "$$script: left out; name the folder of its data with UCI_DATA="; continue; fi; \
			data="--data $(UCI_DATA)"; \
		fi; \
		echo "$$script"; $(BIN)/python $$script $$data $(BENCH_ARGS) || exit 1; \
	done

# What optional environments need: simulators, and packages that carry measured tables. The latter are only read, never
# imported, and their own requirements conflict with ours, hence --no-deps.
carriers: $(VENV)/.seqbdl-run
	$(PIP_INSTALL) neuralfoil==0.3.3 cantera==3.2.0
	$(BIN)/python -m pip install --quiet --no-deps bocode==1.0.1 olymp==0.0.1b0

clean:
	rm -rf build dist site .mypy_cache .pytest_cache .ruff_cache
