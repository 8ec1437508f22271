# Every target sets itself up: a virtual environment in .venv, from the committed lock file.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
UV     := $(BIN)/uv
STAMP  := $(VENV)/.installed
# Where the machine has certificates of its own (a company's, say), they count for uv as they do for pip.
CERTS  := $(wildcard /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt /etc/ssl/cert.pem)
export UV_SYSTEM_CERTS ?= $(if $(CERTS),true,false)

.DEFAULT_GOAL := help
.PHONY: help setup demo up test soak bench lint format protos lock clean

help:  ## Show the targets
	@awk -F':.*## ' '/^[a-z]+:.*## / { printf "  %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP)  ## Create .venv and install everything from the lock file

$(STAMP): requirements.lock pyproject.toml
	@echo "setting up $(VENV) (once; about 20 s)"
	@test -x $(UV) || $(PYTHON) -m venv $(VENV)
	@test -x $(UV) || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.8
	@VIRTUAL_ENV=$(VENV) $(UV) pip install --quiet --compile-bytecode --require-hashes --requirement requirements.lock
	@VIRTUAL_ENV=$(VENV) $(UV) pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(STAMP)  ## Start five data centres and watch real rows go where the law says
	@$(BIN)/regiongate demo $(ARGS)

up: $(STAMP)  ## Run the embedded stack in the foreground (data in ./data)
	@$(BIN)/regiongate up --data-dir data --policy deploy/demo/policy.yaml --base-port 7100 $(ARGS)

test: $(STAMP)  ## Run every test that guards a law (under 10 minutes)
	@$(BIN)/python -m pytest -n 2 --dist loadgroup $(ARGS)

soak: $(STAMP)  ## Run the longer fault hunts
	@$(BIN)/python -m pytest -m soak $(ARGS)

bench: $(STAMP)  ## Measure speed as ratios to bare parts; writes bench/out/summary.json
	@$(BIN)/python -m bench $(ARGS)

lint: $(STAMP)  ## ruff, basedpyright, import-linter, and buf where node is
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/basedpyright
	@$(BIN)/lint-imports
	@sh proto/lint.sh

format: $(STAMP)  ## Format the sources
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

protos: $(STAMP)  ## Regenerate the stubs with the pinned generator
	@$(BIN)/python -m tests.support.stubs --write

lock: $(STAMP)  ## Resolve the dependencies anew
	@$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --all-extras --no-emit-index-url --no-annotate --no-header pyproject.toml --output-file requirements.lock
	@$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header proto/requirements.in --output-file proto/requirements.lock
	@$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --extra arrow --constraint requirements.lock --no-emit-index-url --no-annotate --no-header pyproject.toml --output-file deploy/requirements.lock
	@$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --constraint requirements.lock --no-emit-index-url --no-annotate --no-header deploy/build.in --output-file deploy/build.lock

clean:  ## Remove what the targets made
	@rm -rf $(VENV) .venv-protos data bench/out .pytest_cache .ruff_cache
