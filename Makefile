# make rank    rank NAS-Bench-201 subnets on digits after a short warm-up
# make test    the whole test suite          make lint    what CI checks beside the tests
# make bench   the benchmarks                make docs    the documentation, into docs/_build
# Needs python3 with headers and venv, a C++ compiler and make; installs the rest into .venv.
# SIGEO_CUDA=ON make ... also compiles the CUDA kernels (needs nvcc).

PYTHON ?= python3
BIN := .venv/bin
export OMP_WAIT_POLICY ?= passive

.PHONY: rank test test-quick test-cpp lint format bench docs clean

rank:
	$(PYTHON) .ci/make_venv.py
	$(BIN)/sigeo rank --space nasbench201 --data digits --archs 64 --warmup 0.5 --epochs 4 \
	    --proxy sigeo,zico,params,flops

test: test-cpp
	$(PYTHON) .ci/make_venv.py test
	$(BIN)/python -m pytest

test-quick:
	$(PYTHON) .ci/make_venv.py test
	$(BIN)/python -m pytest -m "not slow"

test-cpp:
	$(PYTHON) .ci/make_venv.py test
	mkdir -p build
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake -S . -B build/cpp -G Ninja -DSIGEO_TESTS=ON > build/cpp.log
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake --build build/cpp >> build/cpp.log || { cat build/cpp.log; exit 1; }
	PATH="$(CURDIR)/$(BIN):$$PATH" ctest --test-dir build/cpp --output-on-failure

lint:
	$(PYTHON) .ci/make_venv.py test lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(shell git ls-files '*.h' '*.cpp' '*.cu' '*.cuh')
	$(BIN)/mypy
	$(BIN)/lint-imports

format:
	$(PYTHON) .ci/make_venv.py lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(shell git ls-files '*.h' '*.cpp' '*.cu' '*.cuh')

bench:
	$(PYTHON) .ci/make_venv.py test
	$(BIN)/python bench/run.py

docs:
	$(PYTHON) .ci/make_venv.py docs
	$(BIN)/sphinx-build -W -q docs docs/_build

clean:
	rm -rf build .venv docs/_build
