# `make train` and `make test` need nothing but Python (3.11 or later) and make; both set up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup train test test-slow lint format bench dashboard wheel-check clean

help:  ## Show this list
	@sed -n 's/^\([a-z-]*\):.*  ## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "gradstab needs Python 3.11 or later; set PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	# Python compiles what it imports; compiling all of PyTorch and Ray beforehand takes minutes.
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --editable '.[dev]'
	touch $(READY)

setup: $(READY)  ## Create .venv and install gradstab into it

train: $(READY)  ## Train the default network on the embedded digits
	$(BIN)/gradstab train
	@echo
	@echo "Next:  make dashboard                          all runs in TensorBoard"
	@echo "       $(BIN)/gradstab train act=sigmoid     watch the gradient vanish"
	@echo "       $(BIN)/gradstab list                  everything there is to choose from"

test: $(READY)  ## Run the tests
	$(BIN)/python -m pytest -n 2

test-slow: $(READY)  ## Run the tests that `make test` leaves out: sweeps killed on the way, on Ray too
	$(BIN)/python -m pytest -n 2 -m slow

lint: $(READY)  ## Check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)  ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)  ## Print what measuring and starting cost, as ratios
	$(BIN)/python scripts/bench.py

dashboard: $(READY)  ## Open TensorBoard on outputs/
	$(BIN)/tensorboard --logdir outputs

wheel-check: $(READY)  ## Build the wheel, install it in a clean environment elsewhere, train there
	$(BIN)/python scripts/wheel_check.py

clean:  ## Remove the environment, caches and builds; outputs/ stays
	rm -rf $(VENV) build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
