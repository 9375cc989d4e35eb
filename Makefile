# make demo    the whole way on handwritten digits, with nothing installed before
# make test    the default tests
# make check   formatting, lint and types
# make slow    the tests that train for minutes

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: demo test slow check clean

demo: $(VENV)/.demo
	$(BIN)/maskdm demo

test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/pytest

slow: $(VENV)/.dev
	$(BIN)/pytest -m slow

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) demo .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo $(VENV)/.dev: $(VENV)/.%: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing maskdm[$*] into $(VENV); this takes about a minute"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$*]'
	@touch $@
