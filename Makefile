# Everything that is run by hand or by CI; needs Python >= 3.10 and make. `make help` lists the targets.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
MINUTES ?= 3.5

.DEFAULT_GOAL := help
.PHONY: help demo test quick check bench clean

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1: /p' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "got Python " + sys.version.split()[0] + ", expected 3.10 or newer: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(STAMP)  ## train a nano GPT-2 with three unequal workers for a few minutes; MINUTES=3.5
	$(BIN)/python -m examples.gpt2.demo --minutes $(MINUTES)

check: $(STAMP)  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test: check  ## all checks and all tests, slow ones too
	$(BIN)/python -m pytest -q

quick: check  ## all checks, and the tests that are not slow
	$(BIN)/python -m pytest -q -m 'not slow'

bench: $(STAMP)  ## one JSON object per line; ONLY="training codecs" for some of the modules
	@$(BIN)/python -m bench $(ONLY)

clean:  ## remove what the other targets made
	rm -rf $(VENV) build runs lightning_logs *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
