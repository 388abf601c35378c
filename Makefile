PYTHON ?= python3
RUN ?= runs/demo
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow check bench soak format clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

# Rewritten whenever the dependencies change; everything below needs it.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(STAMP)

demo: $(STAMP)  ## A whole real loop in minutes: run or resume runs/demo (start anew: make demo RUN=runs/other)
	$(BIN)/archloop run demo --run-dir $(RUN)

# Two files at a time, each test's processes on one thread: more would get in each other's way. In the
# order of their names, as the slow ones come first.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2
test: $(STAMP)  ## Run the tests, but for those that are slow by design
	$(PYTEST) --dist loadfile --no-loadscope-reorder -m "not slow"

test-slow: $(STAMP)  ## Run the other tests: the real LLM's whole run, fine-tunes by several processes
	$(PYTEST) --dist loadfile --no-loadscope-reorder -m slow

check: $(STAMP)  ## Lint, check the format, check the types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

BENCH_STAMP := $(VENV)/.bench-installed
$(BENCH_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	touch $(BENCH_STAMP)

bench: $(BENCH_STAMP)  ## Measure beside the usual way, in one run: Markdown on stdout (BENCH=evaluation for one)
	$(BIN)/python -m benchmarks $(BENCH)

soak: $(BENCH_STAMP)  ## Thousands of candidates through one engine: growth of memory, descriptors, latency
	$(BIN)/python -m benchmarks.soak

format: $(STAMP)  ## Write the format and the fixable lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## Remove build products and caches; the environment and the runs stay
	rm -rf build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
