# `make`: environment and the experiment of config.yaml. `make test`: environment, checks, tests.
# Only Python 3.11 or newer with venv, a C++ compiler and make are assumed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CORES ?= all
TESTERS ?= 2
INSTALLED := $(VENV)/.installed
SOURCES := bfmpipe tests benchmarks

.PHONY: run install test sanitize sanitize-cuda check lint types imports snakefmt format clean
.DEFAULT_GOAL := run

run: install
	$(BIN)/snakemake --cores $(CORES)
	@echo "figures: results/figures/point_mass_maze/fb/curves_aggregate.png and beside it"
	@echo "report:  results/report.html"

install: $(INSTALLED)

# A new pyproject.toml, new pins or a changed kernel: install again. Edits of Python code need none.
$(INSTALLED): pyproject.toml constraints.txt $(shell find csrc -type f)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

test: install check
	$(BIN)/python -m pytest -n $(TESTERS) --dist loadscope --no-loadscope-reorder

# all of the kernels' tests; `make test` has the faster ones of these
sanitize: install
	$(BIN)/python -m tests.kernels.sanitizers

# the same of the CUDA kernels, where there is a GPU
sanitize-cuda: install
	$(BIN)/python -m tests.kernels.sanitizers cuda

check: lint imports types snakefmt

lint: install
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)

imports: install
	$(BIN)/lint-imports

types: install
	$(BIN)/mypy

snakefmt: install
	$(BIN)/snakefmt --check Snakefile

format: install
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/snakefmt Snakefile

clean:
	rm -rf results .snakemake build
