# Three commands from a bare machine: `make fit` runs the main job, `make real` one on a public model, `make test` the
# tests.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
OLDEST := .venv-oldest

# What `test-oldest` runs: the two stages, models of every family, data and the command line; no faults, no notebooks.
CORE := tests/test_api.py tests/test_bounds.py tests/test_checkpoints.py tests/test_cli.py tests/test_private_names.py \
        tests/commands tests/data tests/export tests/families/test_conformance.py tests/metrics tests/model \
        tests/stage_one tests/stage_two

.PHONY: fit real test test-oldest package lint docs clean

fit: $(READY)
	$(BIN)/python -m lke_lightning fit

real: $(READY)
	$(BIN)/python -m lke_lightning real

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-oldest: $(OLDEST)/.ready
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -n 2 --dist loadfile $(CORE)

# What users install: the wheel, built from the source distribution, in an environment of its own, away from here.
package: $(READY)
	rm -rf dist build/package && $(BIN)/python -m build --outdir dist .
	$(PYTHON) -m venv build/package
	build/package/bin/python -m pip install --quiet --constraint constraints.txt dist/*.whl
	cd build/package && bin/lke-lightning fit --data.limit 20 --trainer.default_root_dir run
	cd build/package && bin/lke-lightning export run --output edited

lint: $(READY)
	$(BIN)/ruff check lke_lightning tests benchmarks docs
	$(BIN)/ruff format --check lke_lightning tests benchmarks docs
	$(BIN)/mypy

# The site in build/site; a link that leads nowhere, or a docstring that cannot be read, is an error.
docs: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going --conf-dir docs . build/site

$(READY): constraints.txt
$(OLDEST)/.ready: constraints-oldest.txt
%/.ready: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $*
	@echo "Installing into $*: a few minutes"
	$*/bin/python -m pip install --quiet --constraint $(filter constraints%,$^) --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) $(OLDEST)
