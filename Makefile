# These targets do all the set-up that they need. `make help` lists them.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=
LOCK := --universal --python-version 3.11 --generate-hashes --constraint constraints.txt --no-annotate --no-header

.DEFAULT_GOAL := help
.PHONY: help demo serve test unit lint conformance viewer soak fuzz bench lock clean

help: ## List the targets
	@echo 'make TARGET [ARGS="..."], with TARGET one of:'
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r name what; do \
		printf '  %-12s %s\n' "$$name" "$$what"; done

demo: $(VENV)/.serving ## Show node, archive and page at work with drawn studies
	$(BIN)/cxrnode demo $(ARGS)

serve: $(VENV)/.serving ## Run the node; ARGS="--config node.toml"
	$(BIN)/cxrnode serve $(ARGS)

test: $(VENV)/.developing ## Run all tests that this machine can; ARGS="tests/unit -k name"
	$(BIN)/python -m pytest $(ARGS)

unit: $(VENV)/.developing ## Run the unit tests
	$(BIN)/python -m pytest tests/unit $(ARGS)

lint: $(VENV)/.developing ## Run ruff, mypy and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "cxrnode needs Python 3.11 or newer; name one with: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.serving: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.developing: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[train,dev]'
	@touch $@ $(VENV)/.serving

# A test fails where CONFORMANCE.md and the node's tables differ.
conformance: $(VENV)/.developing ## Write CONFORMANCE.md from the node's tables
	$(BIN)/cxrnode conformance --out CONFORMANCE.md

# It needs Orthanc, its DICOMweb plugin and npm.
viewer: $(VENV)/.developing ## Send a study through a PACS with a viewer beside a running node
	$(BIN)/python -m tests.peers.viewer $(ARGS)

soak: $(VENV)/.developing ## Send studies by the thousand amid faults; ARGS="--studies 5000 --kills 50"
	$(BIN)/python -m tests.soak $(ARGS)

fuzz: $(VENV)/.developing ## Fuzz what reads a peer's bytes; ARGS="--seconds 600 frame"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[fuzz]'
	$(BIN)/python -m tests.fuzz $(ARGS)

bench: $(VENV)/.developing ## Measure against peers into benchmarks/RESULTS.md; ARGS="receive growth"
	$(BIN)/python -m benchmarks $(ARGS)

# The locks are for serving: every package with its hashes. constraints.txt is for development and training too.
lock: $(VENV)/.developing ## Write the installed versions to constraints.txt and the lock files
	$(BIN)/python -m pip freeze --exclude-editable --exclude cxrnode --exclude uv | grep -v '@' > constraints.txt
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet $(LOCK) --output-file requirements.lock pyproject.toml
	echo 'hatchling>=1.25' | $(BIN)/uv pip compile --quiet $(LOCK) --output-file requirements-build.lock -

clean: ## Remove the virtual environment, caches and build output
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache build dist
