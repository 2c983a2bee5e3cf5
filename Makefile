PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test slow lint bench

demo: .venv/installed  ## the main job on the embedded sample
	rm -rf runs/demo
	$(BIN)/python -m evaluate.attack_vs_cert --attacks quick --output runs/demo

test: .venv/installed  ## the fast tests
	$(BIN)/python -m pytest -n auto --maxprocesses 4

slow: .venv/installed  ## the long tests
	$(BIN)/python -m pytest -m slow

lint: .venv/installed  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: .venv/installed  ## speed, as ratios within one run
	$(BIN)/python -m pytest benchmarks -o addopts= --benchmark-columns=median,min,max,rounds

.venv/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "robustpatch needs Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@
