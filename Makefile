# Three commands from a bare machine: `make fit` runs the main job, `make real` one on a public model, `make test` the
# tests.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: fit real test lint clean

fit: $(READY)
	$(BIN)/python -m lke_lightning fit

real: $(READY)
	$(BIN)/python -m lke_lightning real

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(READY)
	$(BIN)/ruff check lke_lightning tests
	$(BIN)/ruff format --check lke_lightning tests

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV)
