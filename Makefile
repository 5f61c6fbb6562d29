# Every chore is one word; `make` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev

.DEFAULT_GOAL := help
.PHONY: help install quickstart test test-slow check fmt bench bench-gpu docs tiny-base clean

help:  ## List the chores
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/:/' | awk -F': *' '{printf "  make %-12s %s\n", $$1, $$2}'

install: $(DEV_STAMP)  ## Create .venv and install Triptych with its tools, versions as in constraints.txt

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[track]'
	touch $(STAMP)

$(DEV_STAMP): $(STAMP)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(DEV_STAMP)

quickstart: $(STAMP)  ## Train the embedded tiny model on the embedded data, evaluate, show (a few minutes)
	rm -rf quickstart/run quickstart/data quickstart/naming quickstart/base
	$(BIN)/triptych quickstart --out quickstart

test: $(DEV_STAMP)  ## Run the tests
	$(BIN)/pytest -q -n 2 --dist loadfile

test-slow: $(DEV_STAMP)  ## Run the slow tests, minutes each (a hundred thousand mutated records)
	$(BIN)/pytest -q -m slow

check: $(DEV_STAMP)  ## Lint, type check, and hold imports to the floors
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fmt: $(DEV_STAMP)  ## Format the code and fix what the linter can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(DEV_STAMP)  ## Run the benchmarks; results go to benchmarks/results
	for file in headers packing; do $(BIN)/python benchmarks/$$file.py || exit 1; done

bench-gpu: $(DEV_STAMP)  ## Measure training steps on this machine's GPU; results go to benchmarks/results/gpu.jsonl
	$(BIN)/python benchmarks/gpu.py

docs: $(DEV_STAMP)  ## Write the generated pages: JSON Schema and table of settings
	$(BIN)/python tools/write_reference.py

tiny-base: $(STAMP)  ## Train the base model of the quickstart again (about twelve minutes)
	$(BIN)/python tools/make_tiny_base.py

clean:  ## Remove what the chores made, .venv excepted
	rm -rf quickstart runs build dist .mypy_cache .ruff_cache .pytest_cache
