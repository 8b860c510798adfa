# These do all the set-up: `make demo` shows the node at work, `make serve` runs it, `make test` runs the tests.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=
LOCK := --universal --python-version 3.11 --generate-hashes --constraint constraints.txt --no-annotate --no-header

.PHONY: demo serve test lint unit conformance viewer soak fuzz bench clean lock

demo: $(VENV)/.serving
	$(BIN)/cxrnode demo $(ARGS)

serve: $(VENV)/.serving
	$(BIN)/cxrnode serve $(ARGS)

test: $(VENV)/.developing
	$(BIN)/python -m pytest $(ARGS)

unit: $(VENV)/.developing
	$(BIN)/python -m pytest tests/unit $(ARGS)

lint: $(VENV)/.developing
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

# Write CONFORMANCE.md from the node's own tables; a test fails where the two differ.
conformance: $(VENV)/.developing
	$(BIN)/cxrnode conformance --out CONFORMANCE.md

# A PACS with a viewer beside a running node, and a study sent through all of it; needs Orthanc, its DICOMweb plugin, npm.
viewer: $(VENV)/.developing
	$(BIN)/python -m tests.peers.viewer $(ARGS)

# Studies by the thousand with faults on all sides; ARGS="--studies 5000 --kills 50" for more.
soak: $(VENV)/.developing
	$(BIN)/python -m tests.soak $(ARGS)

# Coverage-guided fuzzing of what reads a peer's bytes; ARGS="--seconds 600 frame" for one target and longer.
fuzz: $(VENV)/.developing
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[fuzz]'
	$(BIN)/python -m tests.fuzz $(ARGS)

# The node against its peers and the machine, into benchmarks/RESULTS.md; ARGS="receive growth" for some of it.
bench: $(VENV)/.developing
	$(BIN)/python -m benchmarks $(ARGS)

# Write the installed and tested versions into constraints.txt, and those of the serving image with hashes into the locks.
lock: $(VENV)/.developing
	$(BIN)/python -m pip freeze --exclude-editable --exclude cxrnode --exclude uv | grep -v '@' > constraints.txt
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet $(LOCK) --output-file requirements.lock pyproject.toml
	echo 'hatchling>=1.25' | $(BIN)/uv pip compile --quiet $(LOCK) --output-file requirements-build.lock -

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache build dist
