# make demo: the whole story in about 10 minutes; make test: lint and tests. Each makes .venv first.
# TORCH names what to install as PyTorch: TORCH=torch==2.13.0 where that is a CPU build, say.
PYTHON ?= python3
TORCH ?= torch
BIN := .venv/bin

export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo test lint clean

demo: .venv/installed
	$(BIN)/python -m recipes.demo $(DEMO)

test: .venv/installed lint
	$(BIN)/python -m pytest

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# PyTorch first and alone: the other packages then take the build that is there.
.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q "$(TORCH)"
	$(BIN)/python -m pip install -q -e ".[dev]"
	touch $@

clean:
	rm -rf .venv xvlm2vec xvlm2vec.demo
