# Everything a newcomer needs; each target makes the environment first. PYTHON picks the interpreter (3.11 or newer).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: install demo test test-slow lint types docs bench clean

install: $(VENV)/.users

demo: $(VENV)/.users  ## less than six minutes on two cores: train, learn, predict, generate, report
	$(BIN)/weightspace demo $(ARGS)

test: $(VENV)/.developers
	$(BIN)/python -m pytest -n 2 $(ARGS)

test-slow: $(VENV)/.developers  ## what `test` leaves out
	$(BIN)/python -m pytest -m slow $(ARGS)

lint: $(VENV)/.developers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/deptry .

types: $(VENV)/.developers
	$(BIN)/mypy

docs: $(VENV)/.writers
	$(BIN)/sphinx-build -W -b html docs docs/_build/html

bench: $(VENV)/.developers
	for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

clean:
	rm -rf $(VENV) build dist docs/_build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

# One stamp a set of extras: installed again only when what is to be installed changes.
$(VENV)/.users: EXTRAS := plot
$(VENV)/.developers: EXTRAS := dev,plot
$(VENV)/.writers: EXTRAS := docs,plot
$(VENV)/.users $(VENV)/.developers $(VENV)/.writers: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[$(EXTRAS)]"
	touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "weightspace needs Python 3.11 or newer: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
