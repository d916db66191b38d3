# Two commands: `make demo` and `make test`. Each makes .venv and installs what is missing.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
SOURCES := pyproject.toml CMakeLists.txt .ci/constraints.txt $(wildcard kernels/native/*)

.PHONY: help demo test lint unit bench clean

help:
	@echo "make demo   train on the embedded digits for 600 iterations and show what was learned"
	@echo "make test   lint, types, floors and tests"
	@echo "make bench  measure the iteration against the reference"

demo: $(INSTALLED)
	$(BIN)/fastinfogan train mnist --iterations 600 --seed 1

test: lint unit

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

unit: $(INSTALLED)
	$(BIN)/python -m pytest

bench: $(INSTALLED)
	$(BIN)/python -m pytest bench

# pip ends with an error if a package cannot be had; the stamp is written only after that.
$(INSTALLED): $(SOURCES)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint .ci/constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv build
