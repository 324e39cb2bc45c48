# Two commands for a new machine: `make demo` and `make test`. PYTHON=python3.12 picks another interpreter; SET changes
# the demo's settings: make demo SET="generate.images=2"
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo smoke test slow lint check docs install

demo: install
	$(BIN)/python run.py experiments=demo $(SET)

smoke: install
	$(BIN)/python run.py experiments=smoke $(SET)

test: install
	$(BIN)/python -m pytest

slow: install
	$(BIN)/python -m pytest -m slow

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/deptry .

check: lint
	$(BIN)/pyright

docs: install
	$(BIN)/python docs/generate.py

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@
