# Every target makes the one environment ($(VENV)) as far as it needs it; later calls reuse it.
#   make quickstart test lint type docs bench-smoke bench-check      PYTHON=/path/to/python3.12 make test

PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11 python; do \
	"$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$name" && break; done)
VENV ?= .venv
SMOKE ?= results/smoke
PYTEST_FLAGS ?= -n auto --maxprocesses 8

RUN := $(VENV)/bin/
PIP_INSTALL := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
INSTALL_INPUTS := pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help quickstart test lint type docs bench-smoke bench-check format constraints clean

help: ## Say what there is to make
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1|/' | awk -F'|' '{printf "make %-12s %s\n", $$1, $$2}'

quickstart: $(VENV)/.has-core ## Go from raw text to a chat model on the embedded stories
	@$(RUN)lmrl quickstart

test: $(VENV)/.has-test ## Run the whole test suite
	@$(RUN)python -m pytest $(PYTEST_FLAGS) -m "not study"

lint: $(VENV)/.has-dev ## Check style and the order of imports (ruff, import-linter)
	@$(RUN)ruff check .
	@$(RUN)ruff format --check .
	@$(RUN)lint-imports --no-logo --no-cache

type: $(VENV)/.has-dev ## Check types (mypy on lmrl/ and plugins/)
	@$(RUN)mypy

docs: $(VENV)/.has-docs ## Build the documentation into site/; a broken link is an error
	@$(RUN)mkdocs build --strict --quiet
	@echo "The documentation is in site/index.html."

bench-smoke: $(VENV)/.has-test ## Run the throughput suite on the smallest sizes
	@$(RUN)python benchmarks/throughput.py --smoke

bench-check: $(VENV)/.has-test ## Run the benchmark suites at toy size and compare them with the stored results
	@rm -rf $(SMOKE)
	@$(RUN)lmrl bench run smoke --jobs 2 --output $(SMOKE)
	@$(RUN)lmrl bench compare benchmarks/results/smoke $(SMOKE) --complete

format: $(VENV)/.has-dev ## Rewrite the code in the project's style
	@$(RUN)ruff check --fix .
	@$(RUN)ruff format .

constraints: $(VENV)/.has-test $(VENV)/.has-dev $(VENV)/.has-docs $(VENV)/.has-peers ## Pin what this environment holds into constraints.txt
	@{ sed -n '/^#/p' constraints.txt; \
	   $(VENV)/bin/python -m pip freeze --exclude-editable | sed -E '/^#/d; s/\+[A-Za-z0-9.]+$$//'; } > $(VENV)/constraints.new
	@mv $(VENV)/constraints.new constraints.txt
	@echo "constraints.txt now holds what was found here; run make test before committing it."

clean: ## Remove the environment and everything built
	@rm -rf $(VENV) site build dist .mypy_cache .ruff_cache .pytest_cache

$(VENV)/.made:
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer was found; install one, or name it: make PYTHON=/path/to/python3"; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) cannot run or is older than 3.11; name a newer one: make PYTHON=/path/to/python3"; exit 1; }
	@echo "Making the environment $(VENV) with $$("$(PYTHON)" --version)."
	@"$(PYTHON)" -m venv $(VENV) || \
		{ echo "$(PYTHON) has no working venv module; on Debian and Ubuntu it is the package python3-venv."; exit 1; }
	@touch $@

$(VENV)/.has-core: $(VENV)/.made $(INSTALL_INPUTS)
	@echo "Installing lmrl into $(VENV); the first time this takes minutes, because torch is large."
	@$(PIP_INSTALL) -e .
	@touch $@

$(VENV)/.has-%: $(VENV)/.made $(INSTALL_INPUTS)
	@echo "Installing lmrl and its $* extra into $(VENV); the first time this takes minutes, because torch is large."
	@$(PIP_INSTALL) -e ".[$*]"
	@touch $@
