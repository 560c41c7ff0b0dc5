# make demo: the whole story in about 6 minutes. make app: a page that searches its images. make test: lint and
# tests. Each installs first.
# VERSIONS=tested (default), lowest or newest says which versions, each in a virtual environment of its own:
# constraints.txt, constraints-lowest.txt, or what pip finds. make lock writes both files again.
PYTHON ?= python3
VERSIONS ?= tested

# Tests run in so many processes, of one thread each.
JOBS ?= 2

VENV_tested := .venv
VENV_lowest := .venv-lowest
VENV_newest := .venv-newest
CONSTRAINTS_tested := constraints.txt
CONSTRAINTS_lowest := constraints-lowest.txt
VENV := $(VENV_$(VERSIONS))
CONSTRAINTS := $(CONSTRAINTS_$(VERSIONS))
ifeq ($(VENV),)
$(error VERSIONS=$(VERSIONS): pass tested, lowest or newest)
endif
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install -q $(addprefix -c ,$(CONSTRAINTS))
# torchvision's minor release goes with torch's: 0.28 with 2.13.
TORCHVISION = $(shell $(BIN)/python -c 'import torch; \
    print("torchvision==0.%d.*" % (int(torch.__version__.split(".")[1]) + 15))')

export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo app test test-slow lint lock clean

demo: $(VENV)/installed
	$(BIN)/python -m recipes.demo $(DEMO)

# On the images of `make demo`.
app: $(VENV)/installed
	$(BIN)/python -m recipes.image_search.serve xvlm2vec/index --student ./xvlm2vec --open $(APP)

# Releases of ruff differ in what they find, so the lint belongs to the tested set.
test: $(VENV)/installed $(VENV)/families/installed $(if $(filter tested,$(VERSIONS)),lint)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

# The tests with the mark `slow`.
test-slow: $(VENV)/installed $(VENV)/families/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder -m slow

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy xvlm2vec_st mmmeb_tasks

$(VENV)/installed: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) -e ".[dev]"
	touch $@

# In a folder of their own: beside the rest, transformers would resize every image with torchvision. Without
# their dependencies, which could be another build of PyTorch.
$(VENV)/families/installed: $(VENV)/installed
	$(PIP_INSTALL) --no-deps --upgrade --target $(VENV)/families "$(TORCHVISION)" num2words
	touch $@

# The newest versions that pyproject.toml allows, with the release of torch that is tested; and the lowest.
LOCK_TORCH ?= torch==2.13.0
COMPILE := .venv-lock/bin/uv pip compile -q pyproject.toml --extra dev --extra video --python-version 3.11 \
    --upgrade --no-annotate --no-emit-index-url --custom-compile-command "make lock"
lock:
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install -q --upgrade uv
	echo "$(LOCK_TORCH)" > .venv-lock/torch.txt
	$(COMPILE) --universal -c .venv-lock/torch.txt -o constraints.txt
	$(COMPILE) --resolution lowest-direct -o constraints-lowest.txt

clean:
	rm -rf .venv .venv-lowest .venv-newest .venv-lock xvlm2vec xvlm2vec.demo
