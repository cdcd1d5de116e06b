# `make segment` and `make test` do all the set-up on a fresh machine and then the job; a second call is quick.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
DEV := $(VENV)/.installed-dev

.PHONY: segment test browser lint clean

segment: $(READY)
	$(BIN)/vlseg segment examples/peacocks.png "all the peacocks" "the pretzel" "the fuel pump" --out out
	@echo "masks, overlay, SVG and JSON are in out/"

# A process a core, four at most: each holds torch. Tests of a file stay together, for what they share.
test: $(DEV)
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

# The demo in headless Chromium (Debian: chromium); skipped, saying so, where there is none.
browser: $(DEV)
	$(BIN)/python -m pytest tests/demo/test_browser.py -m slow -rs

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Pins come from constraints.txt; the stamp is renewed when either file changes.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "vlseg needs Python 3.11 or newer; try: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable . --constraint constraints.txt
	@touch $@

$(DEV): $(READY)
	$(BIN)/python -m pip install --quiet --editable ".[dev,demo,serve,quant,export,closed]" --constraint constraints.txt
	@touch $@

clean:
	rm -rf $(VENV) out build dist
