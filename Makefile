# Everything a person or CI does, one target each. A fresh machine needs Python >= 3.10 and a C++20 compiler.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SOURCES := $(shell find csrc python tests bench tools -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

.PHONY: help build demo demo-eval test fuzz asan bench format lint clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

# Build requirements go in once; after that, `make build` is an incremental compile.
$(STAMP): pyproject.toml
	@echo "==> creating $(VENV) and installing build and test requirements"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -q --disable-pip-version-check "scikit-build-core>=0.11" "pybind11>=2.13" cmake ninja \
	    numpy tiktoken pytest hypothesis openai-harmony==0.0.8 tokenizers ruff==0.17.6 clang-format==23.1.5
	@touch $(STAMP)

build: $(STAMP)  ## compile the extension and install the package into .venv (editable)
	@echo "==> compiling the native module (about a minute the first time)"
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pip install -q --disable-pip-version-check --no-build-isolation --no-deps -e .

demo: build  ## answer a question with the bundled model
	@echo "==> asking the bundled demo model: What is 4732 + 918?"
	@$(BIN)/gptoss-native chat demo --message "What is 4732 + 918?" --show-analysis

demo-eval: build  ## accuracy of the bundled model on 1,000 held-out questions a task, both numeric modes
	@$(BIN)/python tools/demo_eval.py

test: build  ## every test that needs no big extras
	@echo "==> running the tests"
	@$(BIN)/python -m pytest

fuzz: build  ## 20,000 mutated checkpoints and configs
	@$(BIN)/python -m tests.fuzz.fuzz_checkpoint --n 20000 --forward

asan: $(STAMP)  ## op, model and fuzz tests under AddressSanitizer and UndefinedBehaviorSanitizer
	@tools/asan.sh

bench: build  ## every op against the measured read bandwidth of this machine
	@$(BIN)/python -m bench.ops

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
