# Two commands: `make demo` and `make test`. Each makes .venv and installs what is missing.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
CONSTRAINTS := $(CURDIR)/.ci/constraints.txt
# What builds the C++ part is installed apart from .venv and asks the environment for its versions.
PINNED := PIP_CONSTRAINT=$(CONSTRAINTS) PIP_BUILD_CONSTRAINT=$(CONSTRAINTS)
SOURCES := pyproject.toml CMakeLists.txt .ci/constraints.txt $(wildcard kernels/native/*.cpp kernels/native/*.h)

# What kernels were compiled to, for the tests and for counting after them.
COMPILED := TRITON_CACHE_DIR=$(CURDIR)/build/triton

.PHONY: help demo test test-slow lint unit compiled interpreted bench bench-compare counts clean

help:
	@echo "make demo   train on the embedded digits for 600 iterations and show what was learned"
	@echo "make test   lint, types, floors and tests"
	@echo "make bench  time operations, blocks, iterations, data and start-up against PyTorch"
	@echo "make bench-compare BASE=COMMIT"
	@echo "            time that commit and this tree alternately, and compare their counts"

demo: $(INSTALLED)
	$(BIN)/fastinfogan train mnist --iterations 600 --seed 1

test: lint unit counts

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# Kernels are interpreted in a process of their own: it cannot compile, and others cannot interpret.
# The two run side by side, as neither fills two cores, and each is told when it is through.
unit: $(INSTALLED)
	+$(MAKE) --no-print-directory --jobs=2 --output-sync=target compiled interpreted

compiled: $(INSTALLED)
	$(COMPILED) $(BIN)/python -m pytest -m "not slow" --durations=10

interpreted: $(INSTALLED)
	TRITON_INTERPRET=1 $(BIN)/python -m pytest tests/triton -m "not slow" --durations=10

# What takes longer; CI runs it, too.
test-slow: $(INSTALLED)
	$(COMPILED) $(BIN)/python -m pytest -m slow --durations=10
	TRITON_INTERPRET=1 $(BIN)/python -m pytest tests/triton -m slow --durations=10

bench: $(INSTALLED)
	$(BIN)/python -m pytest bench

# BASE is where this branch left main, or on main the commit before; ARGS as --help tells.
bench-compare: $(INSTALLED)
	$(BIN)/python -m bench.compare $(BASE) $(ARGS)

# Counts must not have grown against bench/results/counts.json.
counts: $(INSTALLED)
	$(COMPILED) $(BIN)/python -m bench.counting.committed

# pip ends with an error if a package cannot be had; the stamp is written only after that.
$(INSTALLED): $(SOURCES)
	$(PYTHON) -m venv .venv
	$(PINNED) $(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv build
