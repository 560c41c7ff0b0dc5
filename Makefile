# make demo: the whole story in about 10 minutes; make test: lint and tests. Each makes .venv first.
# TORCH names what to install as PyTorch: TORCH=torch==2.13.0 where that is a CPU build, say.
# TORCHVISION names the release that goes with it, 0.28 with 2.13; tests alone need it.
PYTHON ?= python3
TORCH ?= torch
BIN := .venv/bin
TORCHVISION ?= $(shell $(BIN)/python -c 'import torch; \
    print("torchvision==0.%d.*" % (int(torch.__version__.split(".")[1]) + 15))')

# Tests run in so many processes, of one thread each.
JOBS ?= 2

export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo test lint clean

demo: .venv/installed
	$(BIN)/python -m recipes.demo $(DEMO)

test: .venv/installed .venv/families/installed lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# PyTorch first and alone: the other packages then take the build that is there.
.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q "$(TORCH)"
	$(BIN)/python -m pip install -q -e ".[dev]"
	touch $@

# Apart from .venv, where transformers would resize every picture with torchvision; and without what it
# asks for, which could be another build of PyTorch.
.venv/families/installed: .venv/installed
	$(BIN)/python -m pip install -q --no-deps --upgrade --target .venv/families "$(TORCHVISION)" num2words
	touch $@

clean:
	rm -rf .venv xvlm2vec xvlm2vec.demo
