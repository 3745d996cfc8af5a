# Everything happens in .venv, made from an installed Python 3.10 or newer.
PYTHON ?= python3
TORCH  ?= torch==2.13.0
VENV   := .venv
BIN    := $(VENV)/bin
GROUP  = $(BIN)/pip install -q --group
BUILD_TOOLS := "scikit-build-core>=0.10" "pybind11>=2.13" "cmake>=3.21" ninja

# Threads that wait do not spin, so that tests do not crawl beside other work.
export OMP_WAIT_POLICY ?= PASSIVE

# So many processes run tests side by side, each with one thread.
TEST_JOBS ?= 2

.PHONY: install demo test wheel docs examples fuzz lint format types cuda emulated sanitize races benchmark clean \
	gpu-build gpu-test benchmark-gpu gpu-kernels gpu-networks gpu-more gpu-training gpu-retrain gpu-srn gpu-srn-tuned gpu-srn-naive gpu-adam
.DELETE_ON_ERROR:

SOURCES := $(shell find csrc tests/emulated -name "*.h" -o -name "*.cpp" -o -name "*.cu")

install: $(VENV)/installed

# torch first: nothing that depends on it may choose its build.
$(VENV)/torch:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "reapx needs Python 3.10 or newer: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --upgrade pip
	$(BIN)/pip install -q "$(TORCH)"
	$(BIN)/pip install -q $(BUILD_TOOLS)
	touch $@

$(VENV)/installed: $(VENV)/torch pyproject.toml CMakeLists.txt $(SOURCES)
	$(BIN)/pip install -q --no-build-isolation --group test -e ".[demo]"
	touch $@

demo: install
	$(BIN)/reapx demo

test: install
	$(BIN)/python -m pytest -n $(TEST_JOBS) --dist worksteal

# The source package, the wheel that it builds, and the demo with that wheel in an empty environment, whose PATH has no
# compiler. The wheel gets the oldest manylinux tag that auditwheel finds it fit for; torch is installed first, as a
# user's would be.
EMPTY := build/empty
$(VENV)/wheel: $(VENV)/torch pyproject.toml
	$(GROUP) wheel
	touch $@

wheel: $(VENV)/wheel
	rm -rf dist build/wheel $(EMPTY)
	$(BIN)/python -m build --sdist --no-isolation --outdir dist .
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pip wheel -q --no-build-isolation --no-deps -C cmake.define.REAPX_CUDA=OFF \
		-w build/wheel dist/*.tar.gz
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/auditwheel repair -w dist build/wheel/*.whl
	$(PYTHON) -m venv $(EMPTY)
	$(EMPTY)/bin/pip install -q "$(TORCH)"
	$(EMPTY)/bin/pip install -q --only-binary :all: "$$(echo dist/*.whl)[demo]"
	cd $(EMPTY) && PYTHONPATH= PATH=$(CURDIR)/$(EMPTY)/bin reapx demo

# Every program and the notebook of examples/, each in a folder of its own under build/: about two minutes.
$(VENV)/examples: $(VENV)/installed
	$(GROUP) examples
	touch $@

examples: $(VENV)/examples
	rm -rf build/examples
	mkdir -p build/examples
	cd build/examples && for file in $(CURDIR)/examples/*.py; do \
		echo "$$file"; $(CURDIR)/$(BIN)/python "$$file" > "$$(basename "$$file").txt" || exit 1; done
	cd build/examples && $(CURDIR)/$(BIN)/jupyter execute --output=$(CURDIR)/build/examples/quickstart.ipynb \
		$(CURDIR)/examples/quickstart.ipynb

# The pages of docs/ as a site in build/site. Every warning is an error; the API is read from the sources, unbuilt.
SITE_TOOLS := build/site-tools
$(SITE_TOOLS)/installed: pyproject.toml
	$(PYTHON) -m venv $(SITE_TOOLS)
	$(SITE_TOOLS)/bin/pip install -q --upgrade pip
	$(SITE_TOOLS)/bin/pip install -q --group docs
	touch $@

docs: $(SITE_TOOLS)/installed
	NO_MKDOCS_2_WARNING=1 $(SITE_TOOLS)/bin/mkdocs build --strict

# Many more random networks than "make test" has: about ten minutes on one core. A failure names its seed.
FUZZ ?= 1000
fuzz: install
	REAPX_FUZZ=$(FUZZ) $(BIN)/python -m pytest -n $(TEST_JOBS) tests/test_fuzz.py

$(VENV)/dev: $(VENV)/installed
	$(GROUP) dev
	touch $@

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(SOURCES)

format: $(VENV)/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(SOURCES)

types: $(VENV)/dev
	$(BIN)/mypy

# The CUDA module by itself, to see that it compiles: it needs nvcc, but no GPU. CUDA_ARCHITECTURES=90 compiles it for
# these alone, in half the time.
cuda: $(VENV)/torch
	$(BIN)/cmake -S . -B build/cuda -G Ninja -D CMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja -D REAPX_CUDA=ON \
		$(if $(CUDA_ARCHITECTURES),-D CMAKE_CUDA_ARCHITECTURES="$(CUDA_ARCHITECTURES)") \
		-D REAPX_WERROR=ON -D Python_EXECUTABLE=$(CURDIR)/$(BIN)/python \
		-D pybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir)
	$(BIN)/cmake --build build/cuda --target _cuda

# Another build than the installed one, under build/, and tests on it: the package, and beside it the tests' module
# reapx_emulated. -S and PYTHONPATH put it before the editable install; so does leaving the folder that holds reapx/.
# $(1): its name; $(2): CMake definitions; $(3), $(4): the environment of the emulator's own check and of the tests;
# $(5): which tests.
SITE         = $(shell $(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
KERNEL_TESTS = $(addprefix test_,$(addsuffix .py,gram gram_half basis path path_weights solve pairs zeros))
define test_build
	$(BIN)/pip install -q --no-build-isolation --no-deps --upgrade --target $(CURDIR)/build/$(1) \
		-C build-dir=build/$(1)-objects $(addprefix -C cmake.define.,REAPX_CUDA=OFF REAPX_EMULATED=ON $(2)) .
	$(3) build/$(1)-objects/tests/emulated/emulated_check
	cd tests && PYTHONPATH=$(CURDIR)/build/$(1):$(SITE) $(4) $(CURDIR)/$(BIN)/python -S -m pytest \
		-c ../pyproject.toml $(5)
endef

# pytest's processes need -S as well, which "-n" does not hand on.
BESIDE = --dist worksteal --tx "$(TEST_JOBS)*popen//python=$(CURDIR)/$(BIN)/python -S"

# The CUDA kernels on an emulated device, and the flow on a pretended one, for machines without a GPU. Warnings of the
# compiler are errors in this build, but not in those under sanitizers, where gcc reports some that are wrong.
emulated: install
	$(call test_build,emulated,REAPX_WERROR=ON,,,$(BESIDE) $(KERNEL_TESTS) test_device.py -k "emulated or test_device")

# All of that and the CPU's kernels, in an extension that watches every address and every undefined operation.
SANITIZERS = $(shell $(CXX) -print-file-name=libasan.so):$(shell $(CXX) -print-file-name=libubsan.so)
SANITIZE   = ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1
COMMA     := ,
sanitize: install
	$(call test_build,sanitized,REAPX_SANITIZE=address$(COMMA)undefined,$(SANITIZE),$(SANITIZE) LD_PRELOAD=$(SANITIZERS),$(BESIDE) \
		$(KERNEL_TESTS) test_device.py)

# The CUDA kernels, emulated, under the thread sanitizer, which tests/emulated/races.h tells what a device puts in order.
# One order of threads is enough for that, and sizes at which barriers of hundreds of threads take minutes are left out.
# Torch has one thread, since the sanitizer does not see what more of them wait for; the history is short, since each
# of more than a thousand emulated threads has one.
RACES = OMP_NUM_THREADS=1 TSAN_OPTIONS=history_size=0 LD_PRELOAD=$(shell $(CXX) -print-file-name=libtsan.so)
LARGE = company or more_images or chosen_positions and not 7-nchw or long and not 150-1
races: install
	$(call test_build,races,REAPX_SANITIZE=thread,,$(RACES),$(KERNEL_TESTS) --capture=sys \
		-k "emulated and not (backward or $(LARGE))")

$(VENV)/benchmark: $(VENV)/installed
	$(GROUP) benchmark
	touch $@

# Every figure of README and docs/, about eight hours alone on two cores, where torch waits in its own way, since times are
# taken. QUICK=--quick only shows that all of it runs: side by side, the kernels in one process.
WORKS := gram path selection solve pairs zeros growth
REPRODUCE := pro_resnet56 pro_choices retrain_resnet56 selections srn_table srn_cifar \
	adam_decay adam_l2_mnist adam_l2_cifar
SCRIPTS := halve heldout refine activations retraining swaps sparsity $(addprefix reproduce/,$(REPRODUCE))
benchmark: $(VENV)/benchmark
ifdef QUICK
	printf '%s\n' "run.py $(WORKS)" $(addsuffix .py,$(SCRIPTS)) | OMP_NUM_THREADS=1 xargs -P $(TEST_JOBS) -I {} \
		sh -c '$(BIN)/python benchmarks/{} $(QUICK) || { echo "failed: {}"; exit 255; }'
else
	for work in $(WORKS); do env -u OMP_WAIT_POLICY $(BIN)/python benchmarks/run.py $$work || exit 1; done
	for script in $(SCRIPTS); do env -u OMP_WAIT_POLICY $(BIN)/python benchmarks/$$script.py || exit 1; done
endif

# The same on an NVIDIA GPU, as results/*_cuda.json: kernels and networks alone on the machine, trainings four at a time.
# Each of the three ends GPU_MINUTES after its start, or soon after: what takes longer than its seconds, or comes too late,
# is named at the end, and a training goes on at the next call. GPU_PYTHON is a Python that has reapx with its CUDA
# kernels and all that benchmarks import, for machines where nothing can be fetched.
GPU_PYTHON  ?= $(BIN)/python
GPU_DEVICE  ?= cuda
GPU_MINUTES ?= 8
GPU_READY    = $(if $(filter $(BIN)/%,$(GPU_PYTHON)),$(VENV)/benchmark)
define gpu_begin
	@failed=; end=$$(($$(date +%s) + 60 * $(GPU_MINUTES))); \
	run() { \
		left=$$((end - $$(date +%s))); if [ $$left -gt $$1 ]; then left=$$1; fi; shift; \
		{ [ $$left -gt 0 ] && timeout $$left env -u OMP_WAIT_POLICY $(GPU_PYTHON) benchmarks/$$@ \
			--device $(GPU_DEVICE) $(QUICK); } || failed="$$failed; $$*"; \
	};
endef
gpu_end = if [ -n "$$failed" ]; then echo "not done$$failed"; exit 1; fi

benchmark-gpu:
	$(MAKE) gpu-kernels
	$(MAKE) gpu-networks
	$(MAKE) -k -j4 gpu-training

# reapx with its CUDA kernels for GPU_PYTHON, in place: for machines where nothing can be fetched, but that have CMake,
# ninja, pybind11 and nvcc. Whatever runs there wants PYTHONPATH=. then.
gpu-build:
	cmake -S . -B build/gpu -G Ninja -D REAPX_CUDA=ON -D Python_EXECUTABLE=$$(command -v $(GPU_PYTHON)) \
		-D pybind11_DIR=$$($(GPU_PYTHON) -m pybind11 --cmakedir)
	cmake --build build/gpu --target _cpu _cuda
	cmake --install build/gpu --prefix .

# Kernels and flow on the GPU against the CPU's; then what can be seen of wrong addresses and races, at small sizes.
GPU_TESTS  = REAPX_TEST_DEVICES=cpu,cuda $(GPU_PYTHON) -m pytest -q -k cuda
GPU_SMALL ?= zeros solve basis pairs
gpu-test: $(GPU_READY)
	$(GPU_TESTS) $(addprefix tests/,$(KERNEL_TESTS) test_public_gram.py test_public_kernels.py test_device.py)
	for tool in memcheck racecheck; do compute-sanitizer --tool $$tool --error-exitcode 9 --target-processes all \
		env $(GPU_TESTS) $(foreach stem,$(GPU_SMALL),tests/test_$(stem).py) || exit 1; done

gpu-kernels: $(GPU_READY)
	$(gpu_begin) for work in gram path solve zeros pairs selection growth; do run 240 run.py $$work; done; $(gpu_end)

gpu-networks: $(GPU_READY)
	$(gpu_begin) run 280 reproduce/pro_resnet56.py; run 240 halve.py --jobs; run 60 sparsity.py; run 60 swaps.py; $(gpu_end)

GPU_TRAIN = $(GPU_PYTHON) benchmarks/reproduce/$(1) --device $(GPU_DEVICE) --minutes $(GPU_MINUTES) $(QUICK)
GPU_SRN   = $(call GPU_TRAIN,srn_cifar.py --bf16 --resume --epochs 30 --retrain 30 --naive-epochs 200)
GPU_ADAM  = $(call GPU_TRAIN,adam_l2_cifar.py --width 1 --epochs 30 --seeds 0)
gpu-training: gpu-retrain gpu-srn gpu-adam
gpu-retrain: $(GPU_READY)
	$(call GPU_TRAIN,retrain_resnet56.py --bf16 --resume --epochs 60)
gpu-srn-tuned: $(GPU_READY)
	$(GPU_SRN) --stages srn pruned resnet
gpu-srn-naive: $(GPU_READY)
	$(GPU_SRN) --stages naive
gpu-srn: gpu-srn-tuned gpu-srn-naive
	$(GPU_SRN) --stages
gpu-adam: $(GPU_READY)
	$(GPU_ADAM) --train-only

# Not part of benchmark-gpu: the table of what gpu-adam trained, and what takes an hour on a CPU.
gpu-more: $(GPU_READY)
	$(GPU_ADAM)
	$(gpu_begin) for script in srn_table selections pro_choices; do run 240 reproduce/$$script.py; done; $(gpu_end)

clean:
	rm -rf $(VENV) build dist
