# Each target sets up what it needs in .venv, from nothing, and then does its job.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
THREADS ?= 2

MINUTES ?= 10
PEER ?=

.PHONY: demo test test-slow lint format fuzz scorecard bench-response bench-geometry bench-curvature clean

demo: $(READY)
	$(BIN)/trifold demo --out demo-run

test: $(READY) lint
	OMP_NUM_THREADS=$(THREADS) $(BIN)/python -m pytest

test-slow: $(READY)
	OMP_NUM_THREADS=$(THREADS) $(BIN)/python -m pytest -m slow

lint: $(READY)
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff check --fix src tests benchmarks
	$(BIN)/ruff format src tests benchmarks

# Damaged files and odd data for MINUTES; exit status 1 if anything but a TrifoldError comes.
fuzz: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/fuzz.py --minutes $(MINUTES)

# The sixty items; make scorecard PEER=scvi=ENV/bin/python adds scvi-tools' column.
scorecard: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/scorecard.py $(if $(PEER),--peer $(PEER))

bench-response: $(READY)
	$(BIN)/python benchmarks/response.py

bench-geometry: $(READY)
	$(BIN)/python benchmarks/geometry.py

bench-curvature: $(READY)
	$(BIN)/python benchmarks/curvature.py

# torch first: a CPU build where pip finds one, else the registry's.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit('trifold needs Python 3.11 or newer: make PYTHON=python3.12 ...' if sys.version_info < (3, 11) else 0)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $(READY)

clean:
	rm -rf $(VENV) demo-run .pytest_cache .mypy_cache .ruff_cache
