# Each target works in a fresh clone: it creates its own environment first.
#   make train     train the small Llama of configs/quickstart.py
#   make test      run the test suite
#   make test-all  the nightly tests too
#   make test-python  the tests that another Python could break
#   make lint      formatting, lint and types
#   make docs      rewrite docs/methods, docs/configuration.md,
#                  docs/conformance.md, docs/recipes.png and
#                  tests/public_api.txt from the code
#   make site      build the documentation site in build/site
#   make release-check  build the sdist and the wheel in dist/, and try them
#   make bench     run all benchmarks and write the tables of
#                  benchmarks/README.md; QUICK=1 runs fewer, writes nothing
# PYTHON=... chooses the interpreter (3.11 or newer), ARGS=... is passed to the
# command.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
UV := $(shell command -v uv)
ARGS ?=

ifdef UV
CREATE = uv venv --quiet --allow-existing --python $(PYTHON) $(VENV)
INSTALL = uv pip install --quiet --python $(BIN)/python
else
CREATE = $(PYTHON) -m venv $(VENV)
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check
endif

.PHONY: train test test-all test-python lint docs site release-check bench clean

# Huge pages: on CPU, XLA allocates its temporaries in every step.
train: export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
train: $(VENV)/.train
	$(BIN)/python -m train.main --config=configs/quickstart.py $(ARGS)

test: $(VENV)/.test
	$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

test-all: $(VENV)/.test
	$(BIN)/python -m pytest -n 2 --dist worksteal -m '' $(ARGS)

# Imports, dataclasses, arguments, configurations, data, processes, and a run.
test-python: $(VENV)/.test
	$(BIN)/python -m pytest -n 2 --dist worksteal \
	  -m 'not slow and not nightly' tests/*_test.py tests/models/hf_test.py \
	  tests/sage_optax/inject_test.py tests/sage_optax/roles_test.py \
	  tests/train/config_test.py tests/train/data tests/train/results \
	  tests/train/main_test.py $(ARGS)

lint: $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(VENV)/.test
	JAX_PLATFORMS=cpu $(BIN)/python -m docs.generate

# With --quiet, mkdocs would ignore warnings in spite of --strict.
site: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

release-check: $(VENV)/.dev
	$(BIN)/python .ci/release_check.py

RESULTS := $(if $(QUICK),,--markdown benchmarks/README.md)
bench: export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
bench: export JAX_PLATFORMS := cpu
bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks.optimizers $(RESULTS) \
	  $(if $(QUICK),--params 60M --rounds 2,--tpu) $(ARGS)
	$(BIN)/python -m benchmarks.train_step $(RESULTS)
	$(BIN)/python -m benchmarks.pipeline $(RESULTS) \
	  $(if $(QUICK),--configs quickstart)

$(VENV)/.train: pyproject.toml constraints.txt
	$(CREATE)
	$(INSTALL) --constraint constraints.txt --editable '.[train]'
	touch $@

$(VENV)/.test: pyproject.toml constraints.txt
	$(CREATE)
	$(INSTALL) --constraint constraints.txt --editable '.[train,test]'
	touch $@ $(VENV)/.train

$(VENV)/.bench: pyproject.toml constraints.txt
	$(CREATE)
	$(INSTALL) --constraint constraints.txt --editable '.[train,bench,tpu-plan]'
	touch $@ $(VENV)/.train

$(VENV)/.docs: pyproject.toml constraints.txt
	$(CREATE)
	$(INSTALL) --constraint constraints.txt --editable '.[docs]'
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt
	$(CREATE)
	$(INSTALL) --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist .cache .pytest_cache .mypy_cache .ruff_cache
