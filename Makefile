# Everything happens in .venv, made from an installed Python 3.10 or newer.
PYTHON ?= python3
TORCH  ?= torch==2.13.0
VENV   := .venv
BIN    := $(VENV)/bin
BUILD_TOOLS := "scikit-build-core>=0.10" "pybind11>=2.13" "cmake>=3.21" ninja

# Threads that wait do not spin, so that tests do not crawl beside other work.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: install demo test lint format types sanitize benchmark clean
.DELETE_ON_ERROR:

install: $(VENV)/installed

# torch first: nothing that depends on it may choose its build.
$(VENV)/torch:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "reapx needs Python 3.10 or newer: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --upgrade pip
	$(BIN)/pip install -q "$(TORCH)"
	$(BIN)/pip install -q $(BUILD_TOOLS)
	touch $@

$(VENV)/installed: $(VENV)/torch pyproject.toml CMakeLists.txt $(wildcard csrc/*)
	$(BIN)/pip install -q --no-build-isolation -e ".[demo,test]"
	touch $@

demo: install
	$(BIN)/reapx demo

test: install
	$(BIN)/python -m pytest

$(VENV)/dev: $(VENV)/installed
	$(BIN)/pip install -q --no-build-isolation -e ".[dev]"
	touch $@

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror csrc/*.h csrc/*.cpp

format: $(VENV)/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i csrc/*.h csrc/*.cpp

types: $(VENV)/dev
	$(BIN)/mypy

# The kernel tests against an extension that watches every address and every undefined operation.
# -S and PYTHONPATH put it before the editable install; so does leaving the folder that holds reapx/.
SANITIZED := $(CURDIR)/build/sanitized
SITE       = $(shell $(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
SANITIZERS = $(shell $(CXX) -print-file-name=libasan.so):$(shell $(CXX) -print-file-name=libubsan.so)
sanitize: install
	$(BIN)/pip install -q --no-build-isolation --no-deps --upgrade --target $(SANITIZED) \
		-C build-dir=build/sanitized-objects -C cmake.define.REAPX_SANITIZE=address,undefined .
	cd tests && PYTHONPATH=$(SANITIZED):$(SITE) LD_PRELOAD=$(SANITIZERS) ASAN_OPTIONS=detect_leaks=0 \
		UBSAN_OPTIONS=print_stacktrace=1 $(CURDIR)/$(BIN)/python -S -m pytest -c ../pyproject.toml \
		test_gram.py test_basis.py test_path.py test_path_weights.py test_solve.py test_pairs.py test_zeros.py

$(VENV)/benchmark: $(VENV)/installed
	$(BIN)/pip install -q --no-build-isolation -e ".[benchmark]"
	touch $@

# Every figure of the README, about eight hours alone on two cores; with QUICK=--quick, only that all of it runs.
# Torch waits in its own way where times are taken.
WORKS := gram path selection solve pairs zeros growth
REPRODUCE := pro_resnet56 pro_choices retrain_resnet56 selections srn_table srn_cifar \
	adam_decay adam_l2_mnist adam_l2_cifar
benchmark: BENCH = $(if $(QUICK),,env -u OMP_WAIT_POLICY )$(BIN)/python benchmarks
benchmark: $(VENV)/benchmark
	for work in $(WORKS); do $(BENCH)/run.py $$work $(QUICK) || exit 1; done
	$(BENCH)/halve.py $(QUICK)
	$(BENCH)/swaps.py $(QUICK)
	$(BENCH)/sparsity.py $(QUICK)
	for script in $(REPRODUCE); do $(BENCH)/reproduce/$$script.py $(QUICK) || exit 1; done

clean:
	rm -rf $(VENV) build
