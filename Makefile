# Each target sets up what it needs in .venv, from nothing, and then does its job.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Files of versions and hashes, and then nothing else is installed: CI gives LOCK, see ci/README.md.
LOCK ?=
READY := $(VENV)/$(if $(strip $(LOCK)),.locked,.ready)
TOOLS := $(VENV)/tools
PIP := -m pip --quiet --disable-pip-version-check
THREADS ?= 2

MINUTES ?= 10
PEER ?=

.PHONY: demo test test-slow lint format lock audit fuzz scorecard reliability bench-response bench-geometry bench-curvature clean

demo: $(READY)
	$(BIN)/trifold demo --out demo-run

test: $(READY) lint
	OMP_NUM_THREADS=$(THREADS) $(BIN)/python -m pytest

test-slow: $(READY)
	OMP_NUM_THREADS=$(THREADS) $(BIN)/python -m pytest -m slow

lint: $(READY)
	$(BIN)/ruff check src tests benchmarks ci
	$(BIN)/ruff format --check src tests benchmarks ci
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff check --fix src tests benchmarks ci
	$(BIN)/ruff format src tests benchmarks ci

# Damaged files and odd data for MINUTES; exit status 1 if anything but a TrifoldError comes.
fuzz: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/fuzz.py --minutes $(MINUTES)

# The sixty items; make scorecard PEER=scvi=ENV/bin/python adds scvi-tools' column.
scorecard: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/scorecard.py $(if $(PEER),--peer $(PEER))

# docs/reliability.md from the results of scorecard, kills, soak, fuzz, limits and durability.
reliability: $(READY)
	$(BIN)/python benchmarks/scorecard_page.py

bench-response: $(READY)
	$(BIN)/python benchmarks/response.py

bench-geometry: $(READY)
	$(BIN)/python benchmarks/geometry.py

bench-curvature: $(READY)
	$(BIN)/python benchmarks/curvature.py

# Without a lock: the versions of constraints.txt in whatever build pip finds for this machine, torch first, so that nothing else chooses one.
# With one: a new environment of wheels whose hashes are listed, trifold itself built by those, and a look whether anything is missing.
$(READY): pyproject.toml constraints.txt $(LOCK)
	$(PYTHON) -c "import sys; sys.exit('trifold needs Python 3.11 or newer: make PYTHON=python3.12 ...' if sys.version_info < (3, 11) else 0)"
ifeq ($(strip $(LOCK)),)
	rm -f $(VENV)/.locked
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP) install --constraint constraints.txt torch
	$(BIN)/python $(PIP) install --constraint constraints.txt --editable ".[dev]"
else
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python $(PIP) install --require-hashes --no-deps --only-binary :all: $(addprefix --requirement ,$(LOCK))
	$(BIN)/python $(PIP) install --no-deps --no-build-isolation --editable .
	$(BIN)/python -m pip check
endif
	touch $(READY)

# Writes ci/*.lock again, with the versions of constraints.txt.
lock: $(TOOLS)/.ready
	$(TOOLS)/bin/python ci/lock.py

# Asks for known vulnerabilities of every locked version; exit status 1 if there is one, or if a package could not be looked up.
# torch's CPU build has the version of its CUDA build, under which it is known.
audit: $(TOOLS)/.ready
	$(TOOLS)/bin/pip-audit --strict --disable-pip --require-hashes \
		$(addprefix --requirement ,ci/requirements.lock ci/torch-cuda.lock ci/tools.lock)

$(TOOLS)/.ready: ci/tools.lock
	$(PYTHON) -m venv --clear $(TOOLS)
	$(TOOLS)/bin/python $(PIP) install --require-hashes --no-deps --only-binary :all: --requirement ci/tools.lock
	touch $(TOOLS)/.ready

clean:
	rm -rf $(VENV) demo-run .pytest_cache .mypy_cache .ruff_cache
