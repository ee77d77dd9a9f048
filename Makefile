# Every target makes the same .venv first. Another interpreter: make PYTHON=/path/to/python3.12 …
.DEFAULT_GOAL := help
.PHONY: help venv demo format lint test test-slow test-kills nnunet

BIN := .venv/bin
FITS := import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do \
	$$p -c "$(FITS)" >/dev/null 2>&1 && echo $$p && break; done)

help: ## this list
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /  make \1\t/' | expand -t 20

venv: .venv/.installed ## .venv with the exact versions of constraints.txt

.venv/.installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" && $(PYTHON) -c "$(FITS)" >/dev/null 2>&1 || { \
	  echo "AnatoMask needs Python 3.11 or 3.12. Install one, or name it: make PYTHON=/path/to/python3.12 …" >&2; exit 1; }
	@$(PYTHON) -c "import ensurepip, venv" >/dev/null 2>&1 || { \
	  echo "$(PYTHON) cannot create environments. On Debian or Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@echo "Creating .venv with $$($(PYTHON) --version) and installing what constraints.txt lists (minutes, once)"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,spconv]"
	@touch $@

demo: venv ## the whole chain on phantom scans, from raw scans to a scored table
	@$(BIN)/python -m pipelines.demo

lint: venv ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: venv ## ruff's formatter and its fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: lint ## lint and all tests but the slow ones, in two processes
	$(BIN)/pytest -m "not slow" -n 2 --dist loadgroup --durations=25

test-slow: venv ## the tests that take minutes, in two processes
	$(BIN)/pytest -m slow -n 2 --dist loadgroup --no-loadscope-reorder --durations=40

NNUNET ?= $(HOME)/.cache/anatomask/nnunet-venv
nnunet: ## nnU-Net 2.8.1 in an environment of its own, with which test-slow and benchmarks compare (minutes, once)
	$(PYTHON) -m venv $(NNUNET)
	$(NNUNET)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(NNUNET)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r tests/nnunet.txt

test-kills: venv ## kills at random moments (about 100 minutes; stopped, it goes on); rm -r kills begins anew
	$(BIN)/python -m tests.kills kills
