# What a person types. On a machine that has never seen fastdet each of these installs it first.
#
#   make check    before each commit: lint, and the tests that are quick; about 3 minutes on 2 cores
#   make build    after an edit of C++ or CUDA code: compiles what changed, without pip
#   make test     all tests; `make -j2 test` runs two parts at a time; .ci/run is the whole check
PYTHON ?= python3
BIN := .venv/bin
CPP := $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')
PARTS := test-models test-rest test-emulation test-smaller-isas test-ops

.PHONY: install build check demo test test-quick $(PARTS) bench experiments lint format clang aarch64 abi abi-environments sanitize cuda-resources cuda-roofline clean

# `make -j2 install` compiles while pip downloads and unpacks what the tests and tools need.
install: .venv/built .venv/installed

# What the build needs, for the Makefile and, of torch alone, for pip, which would unpack a second one.
.venv/tools: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install torch torchvision "cmake>=3.26" ninja "pybind11>=2.13" "setuptools>=77"
	touch $@

.venv/installed: .venv/tools setup.py build_backend.py native_build.py repository_urls.py
	FASTDET_COMPILE=off $(BIN)/pip install -e ".[dev]"
	touch $@

# The build folder is pip's, build/cpython-*, and stays; the libraries go into fastdet/.
define compile
PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python native_build.py
touch .venv/built
endef

.venv/built: .venv/tools CMakeLists.txt native_build.py cmake/cuda.cmake $(CPP)
	$(compile)

build: .venv/tools
	$(compile)

check: install
	$(MAKE) --no-print-directory -j2 lint test-quick

test-quick: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile \
	  -m "not slow and not emulation and not memory and not registration"

demo: install
	$(BIN)/fastdet demo --out demo

# Every test once, and on each smaller instruction set that the processor has the op tests that run
# its loops. In parts of some minutes, so that `make -j2` keeps two cores busy; test-rest takes what no
# other part takes.
test: $(PARTS)

test-models: install
	$(BIN)/python -m pytest tests/models tests/deploy tests/engine

test-rest: install
	$(BIN)/python -m pytest tests $(addprefix --ignore=tests/,models deploy engine ops cuda_emulation)

test-ops: install
	$(BIN)/python -m pytest tests/ops -m "not emulation"

test-emulation: install
	$(BIN)/python -m pytest tests/ops tests/cuda_emulation -m emulation -k "not test_compiles"

test-smaller-isas: install
	for isa in $$($(BIN)/python -m tests.smaller_isas); do \
	  FASTDET_CPU_ISA=$$isa $(BIN)/python -m pytest tests/ops -k "not instruction_sets_agree" \
	    -m "not slow and not emulation and not cuda and not memory and not registration" || exit 1; done

bench: install
	$(BIN)/fastdet bench --out benchmarks/results/cpu_ops.json --overwrite
	$(BIN)/python -m benchmarks.detector_profile
	$(BIN)/python -m benchmarks.plots
	$(BIN)/python -m benchmarks.readme_tables

# The trainings of examples/experiments on blood cells, and docs/experiments.md: an hour on 2 cores.
# Other data: make experiments DATA=FOLDER. What is done is not repeated.
DATA ?= ../shared/data/bccd
EXPERIMENTS := runs/experiments
experiments: install
	FASTDET=$(BIN)/fastdet examples/experiments/run.sh $(DATA) $(EXPERIMENTS)
	$(BIN)/fastdet runs $(EXPERIMENTS) --sort AP --format csv --out benchmarks/results/experiments.csv --overwrite
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

# Another compiler's warnings are errors: all C++ code, in a folder of its own. Of Python it needs only
# what the build does. Another version: make clang CLANG=clang++-19.
CLANG ?= clang++
clang: $(BIN)/cmake
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake -S . -B build/$(notdir $(CLANG)) -G Ninja \
	  -DCMAKE_CXX_COMPILER=$(CLANG) -DCMAKE_COMPILE_WARNING_AS_ERROR=ON -DFASTDET_CUDA=off \
	  -DFASTDET_TORCH="$$($(BIN)/python -c 'import native_build; print(native_build.find_torch())')" \
	  -DPython_EXECUTABLE="$(CURDIR)/$(BIN)/python" \
	  -Dpybind11_DIR="$$($(BIN)/python -m pybind11 --cmakedir)"
	$(BIN)/cmake --build build/$(notdir $(CLANG))

$(BIN)/cmake:
	$(PYTHON) -m venv .venv
	$(BIN)/pip install torch cmake ninja pybind11 setuptools

abi: install
	$(BIN)/python tools/abi.py

abi-environments:
	$(PYTHON) tools/abi.py --environments

# The loops on another processor; the tool says what it needs.
aarch64: $(BIN)/cmake
	$(BIN)/python tools/aarch64.py

cuda-resources: install
	$(BIN)/python tools/cuda_resources.py

# What each CUDA kernel cannot be faster than, counted on the CPU: minutes of one core.
cuda-roofline: install
	$(BIN)/python -m tools.cuda_roofline --out benchmarks/results/cuda_roofline.md

sanitize: install
	$(BIN)/python tools/sanitize.py

clean:
	rm -rf build demo .cache fastdet/*.so .venv/tools .venv/installed .venv/built
