# Both targets do all the set-up on a machine with Python 3.11 or later, git and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Threads that wait give way instead of spinning: on shared cores that is ten times faster.
export OMP_WAIT_POLICY := passive
STAMP := $(VENV)/.ready
# Older releases of transformers, which the tests run: scripts/fetch_runtimes.py.
RUNTIMES := .runtimes/.ready

.PHONY: demo test test-all check docs bench clean

demo: $(STAMP)
	$(BIN)/python demo/run.py

test: $(STAMP) $(RUNTIMES) check
	$(BIN)/python -m pytest -q -m "not full"

# The everyday tests, the full grids, and the real model, which is fetched first.
test-all: $(STAMP) $(RUNTIMES) check
	$(BIN)/python scripts/fetch_assets.py
	$(BIN)/python -m pytest -q

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python docs/generate.py --check

docs: $(STAMP)
	$(BIN)/python docs/generate.py

bench: $(STAMP)
	$(BIN)/python benchmarks/convert.py

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(STAMP)

$(RUNTIMES): $(STAMP) scripts/fetch_runtimes.py
	$(BIN)/python scripts/fetch_runtimes.py
	touch $(RUNTIMES)

clean:
	rm -rf $(VENV) .runtimes demo/output build dist
