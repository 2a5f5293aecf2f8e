# What a person types. `make demo` and `make test` work on a machine that has never seen fastdet:
# the environment comes first, by the two commands of the README.
PYTHON ?= python3
BIN := .venv/bin
CPP := $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

.PHONY: install demo test test-everything test-smaller-isas bench lint format abi sanitize \
  cuda-resources clean

install: .venv/installed

.venv/installed: pyproject.toml setup.py build_backend.py CMakeLists.txt cmake/cuda.cmake $(CPP)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -e ".[dev]"
	touch $@

demo: install
	$(BIN)/fastdet demo --out demo

# Everything once, and the op tests on each smaller instruction set that the processor has.
test: test-everything test-smaller-isas

test-everything: install
	$(BIN)/python -m pytest

test-smaller-isas: install
	for isa in $$($(BIN)/python -m tests.smaller_isas); do \
	  FASTDET_CPU_ISA=$$isa $(BIN)/python -m pytest tests/ops -m "not slow and not emulation" || exit 1; done

bench: install
	$(BIN)/fastdet bench --out benchmarks/results/cpu_ops.json
	$(BIN)/python -m benchmarks.detector_profile
	$(BIN)/python -m benchmarks.plots
	$(BIN)/python -m benchmarks.readme_tables

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/clang-format --dry-run --Werror $(CPP)

# The documentation site in site/; a warning, such as a broken link, is an error.
.PHONY: docs docs-serve clean-docs
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-serve: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

clean: clean-docs
clean-docs:
	rm -rf site

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

abi: install
	$(BIN)/python tools/abi.py

cuda-resources: install
	$(BIN)/python tools/cuda_resources.py

sanitize: install
	$(BIN)/python tools/sanitize.py

clean:
	rm -rf build demo .cache fastdet/*.so .venv/installed
