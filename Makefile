# A fresh machine needs Python 3.11+, make and gcc; everything else is installed here by pip.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
SOURCES := src tests benchmarks examples

.PHONY: demo test test-all check bench install format clean

## From raw text to a served model, and the tide, in about five minutes.
demo: $(VENV)/.demo
	$(BIN)/tide demo

## The tests that every change passes; under 12 minutes on two cores.
test: $(VENV)/.test
	$(BIN)/python -m pytest -m "not slow"

## Slow suites too.
test-all: $(VENV)/.test
	$(BIN)/python -m pytest

## Formatting, lint, types, import contracts.
check: $(VENV)/.test
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports

## make bench NAME=journal runs benchmarks/journal.py; without NAME all of them.
bench: $(VENV)/.test
	$(BIN)/python benchmarks/run.py $(NAME)

format: $(VENV)/.test
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

install: $(VENV)/.demo

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml constraints.txt src/tidecell/traffic/_http1.c | $(VENV)/bin/python
	@echo "installing into $(VENV) (once; PyTorch is the largest part)"
	$(PIP) -e ".[demo]"
	@touch $@

$(VENV)/.test: $(VENV)/.demo
	$(PIP) -e ".[demo,test,check]"
	@touch $@

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
