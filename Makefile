# Both targets do all the set-up on a machine with Python 3.11 or later, git and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Threads that wait give way instead of spinning: on shared cores that is ten times faster.
export OMP_WAIT_POLICY := passive
STAMP := $(VENV)/.ready
# Older releases of transformers and a server's modules, which the tests run: scripts/fetch_runtimes.py.
RUNTIMES := .runtimes/.ready
# Processes side by side, each with one thread: for models this small a second thread only gets in the way. The tests
# of a file stay in one process, as they share what was made for them.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-all check docs bench clean

demo: $(STAMP)
	$(BIN)/python demo/run.py

test: $(STAMP) $(RUNTIMES) check
	$(PYTEST) -m "not full"

# The everyday tests, the full grids, and the real model, which is fetched first.
test-all: $(STAMP) $(RUNTIMES) check
	$(BIN)/python scripts/fetch_assets.py
	$(BIN)/python scripts/fetch_runtimes.py --all
	$(PYTEST)

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
