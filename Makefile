PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test slow lint docs bench

demo: .venv/lean  ## the main job on the embedded sample
	rm -rf runs/demo
	$(BIN)/python -m evaluate.attack_vs_cert --attacks quick --output runs/demo

test: .venv/dev  ## the fast tests
	$(BIN)/python -m pytest -n auto --maxprocesses 4

slow: .venv/dev  ## the long tests
	$(BIN)/python -m pytest -m slow

lint: .venv/dev  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

docs: .venv/docs  ## the site, into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet
	@echo "open site/index.html; for search: $(BIN)/python -m http.server -d site"

bench: .venv/dev  ## speed, as ratios within one run
	$(BIN)/python -m pytest benchmarks -o addopts= --benchmark-columns=median,min,max,rounds

.venv/lean: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "robustpatch needs Python 3.11 or newer; set PYTHON=")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(INSTALL) -e .
	touch $@

.venv/dev .venv/docs: .venv/%: .venv/lean  ## an extra of pyproject.toml
	$(INSTALL) -e ".[$*]"
	touch $@
