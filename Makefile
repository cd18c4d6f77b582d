# Everything a newcomer needs: `make demo` and `make test`, each alone sufficient on a fresh machine.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
# By all cores, where pip takes one. It fails for the files that packages carry for other Pythons, and does the rest.
COMPILE := $(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true

.PHONY: demo test lint clean

demo: $(VENV)/.installed
	test -e demo.yaml || $(BIN)/inlay init --demo demo.yaml
	$(BIN)/inlay run demo.yaml
	$(BIN)/python benchmarks/check_demo.py demo.search

# Our own files are compiled once, also where Python is told to write no bytecode: tests start hundreds of processes.
# Three processes of tests on two cores: searches and clusters wait a lot, for Ray above all.
test: $(VENV)/.installed-dev
	$(BIN)/python -m compileall -q cluster distill inlay kernels nas solver
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -n 3

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The lock file comes first: it names exact versions, so that every machine gets the same ones.
$(VENV)/.installed: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "inlay needs Python 3.11 or newer, this is " + sys.version.split()[0])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -r requirements.lock
	$(PIP) --no-deps -e .
	$(COMPILE)
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.lock
	$(PIP) -r requirements-dev.lock
	$(COMPILE)
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info demo.yaml demo.search
