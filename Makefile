# Everything a person or CI does, one target each. A fresh machine needs Python >= 3.10 and a C++20 compiler.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SOURCES := $(shell find csrc python tests bench tools -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

# Warnings stop the compilation: for our own runs, not for whoever has a compiler that we never saw.
STRICT ?= OFF
# Schedules and inputs that `make simt` gives each test on the simulated GPU.
SCHEDULES ?= 50
# Where test-extras keeps the vendors' clients.
CLIENTS ?= .venv-clients
# Where `peers` keeps llama.cpp.
PEERS ?= .venv-peers
# Where test-extras keeps Ray, and a copy of the package for it.
RAY ?= .venv-ray
# Where test-extras keeps torch and the official implementations; name an environment that has them to use it.
ORACLES ?= .venv-oracles
INSTALL := PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pip install -q --disable-pip-version-check \
    --no-build-isolation --no-deps -C cmake.define.CMAKE_COMPILE_WARNING_AS_ERROR=$(STRICT)

.PHONY: help build wheel peers build-simt demo demo-eval cuda test test-extras simt simt-asan simt-tsan fuzz asan bench format \
    lint clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

# Build requirements go in once; after that, `make build` is an incremental compile.
$(STAMP): pyproject.toml
	@echo "==> creating $(VENV) and installing build and test requirements"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -q --disable-pip-version-check "pip>=23.1" "scikit-build-core>=0.11" \
	    "pybind11>=2.13" cmake ninja numpy tiktoken pytest hypothesis openai-harmony==0.0.8 tokenizers ruff==0.17.6 \
	    clang-format==23.1.5 starlette uvicorn uvloop httptools pyyaml httpx \
	    "llguidance>=1.3" jsonschema matplotlib
	@touch $(STAMP)

build: $(STAMP)  ## compile the extension and install the package into .venv (editable)
	@echo "==> compiling the native module (about a minute the first time)"
	@$(INSTALL) -e .

# The tests' module has one device more; `make build` puts the ordinary one back.
build-simt: $(STAMP)
	@echo "==> compiling the native module and the simulated GPU (two minutes the first time)"
	@$(INSTALL) -C build-dir=build/simt -C cmake.define.GPTOSS_SIMT=ON -e .

wheel: $(STAMP)  ## wheels (for PYTHONS) and a source archive in dist/, each tried out in an empty environment
	@PYTHONS="$(PYTHONS)" tools/wheel.sh
	@PYTHONS="$(PYTHONS)" tools/smoke_wheel.sh

peers: $(PEERS)/bin/python  ## llama.cpp in an environment of its own, for bench.versus (a quarter of an hour of compiling)

$(PEERS)/bin/python: bench/peers/requirements.txt
	@$(PYTHON) -m venv $(PEERS)
	@$(PEERS)/bin/python -m pip install -q --disable-pip-version-check -r $<

demo: build  ## answer a question with the bundled model
	@echo "==> asking the bundled demo model: What is 4732 + 918?"
	@$(BIN)/gptoss-native chat demo --message "What is 4732 + 918?" --show-analysis

demo-eval: build  ## accuracy of the bundled model on 1,000 held-out questions a task, both numeric modes
	@$(BIN)/python tools/demo_eval.py

cuda: $(STAMP)  ## compile the CUDA kernels for every architecture, print what each takes; fails on a spill
	@STRICT=$(STRICT) tools/cuda.sh

test: build-simt  ## every test that needs no big extras; those of the simulated GPU three times
	@echo "==> running the tests"
	@$(BIN)/python -m pytest

test-extras: build $(ORACLES)/bin/python $(CLIENTS)/bin/python $(RAY)/bin/python  ## official oracles and clients, Ray
	@tools/test_extras.sh $(ORACLES) $(CLIENTS) $(RAY)

$(RAY)/bin/python:
	@echo "==> creating $(RAY) with Ray Serve and the package (a minute of compiling)"
	@$(PYTHON) -m venv $(RAY)
	@$(RAY)/bin/python -m pip install -q --disable-pip-version-check -C build-dir=build/ray ".[ray]" pytest httpx

$(CLIENTS)/bin/python:
	@echo "==> creating $(CLIENTS) with the vendors' clients"
	@$(PYTHON) -m venv $(CLIENTS)
	@$(CLIENTS)/bin/python -m pip install -q --disable-pip-version-check openai==3.54.0 anthropic==2.12.0 \
	    playwright==1.64.* schemathesis pytest numpy

$(ORACLES)/bin/python:
	@echo "==> creating $(ORACLES) with torch and the official implementations (about 2 GB)"
	@$(PYTHON) -m venv $(ORACLES)
	@$(ORACLES)/bin/python -m pip install -q --disable-pip-version-check torch==2.13.0 transformers==5.23.0 \
	    safetensors numpy peft==0.21.2
	@$(ORACLES)/bin/python -m pip install -q --disable-pip-version-check --no-deps --ignore-requires-python \
	    gpt-oss==0.0.9

simt: build-simt  ## op and model tests on the simulated GPU, SCHEDULES=50 times with other inputs (half an hour)
	@$(BIN)/python -m pytest tests/ops tests/model -k simt --schedules $(SCHEDULES)

simt-asan: $(STAMP)  ## the CUDA kernels on the simulated GPU under AddressSanitizer and UndefinedBehaviorSanitizer
	@$(BIN)/python -m tests.simt.sanitizers address

simt-tsan: $(STAMP)  ## the same under ThreadSanitizer: races between threads of a block and between blocks
	@$(BIN)/python -m tests.simt.sanitizers thread

fuzz: build  ## 20,000 mutated checkpoints and configs
	@$(BIN)/python -m tests.fuzz.fuzz_checkpoint --n 20000 --forward

asan: $(STAMP)  ## op, model and fuzz tests under AddressSanitizer and UndefinedBehaviorSanitizer
	@tools/asan.sh

bench: build  ## every op against the measured read bandwidth of this machine
	@$(BIN)/gptoss-native bench ops

format: $(STAMP)  ## rewrite C++ and Python in the project's style
	@$(BIN)/clang-format -i $(SOURCES)
	@$(BIN)/ruff format python tests bench tools
	@$(BIN)/ruff check --fix python tests bench tools

lint: $(STAMP)  ## check style and layering
	@$(BIN)/clang-format --dry-run -Werror $(SOURCES)
	@$(BIN)/ruff check python tests bench tools
	@$(BIN)/ruff format --check python tests bench tools

clean:  ## remove what the other targets made
	rm -rf $(VENV) build dist
