# `make demo` and `make test` do all their own set-up; the rest is for working on emoe.
BIN := .venv/bin
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help demo test test-cluster check lint format protos crd bench-peers setup-demo setup-dev

help: ## Show these lines
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

demo: setup-demo ## Set up, serve the model that ships with a quarter of its experts in memory, answer seven prompts
	@$(BIN)/emoe demo $(ARGS)

test: check ## Set up, run every check, then the tests in random order (ARGS="-k word" picks some)
	@$(BIN)/pytest $(ARGS)

test-cluster: setup-dev ## Bring up a Kubernetes of our own, build the images, install the chart, test it all (KEEP=1 leaves it standing)
	@tests/cluster/run $(ARGS)

check: setup-dev ## Lint, formatting, types, rules of import, generated code
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python tools/protos.py check
	@$(BIN)/python tools/crd.py check

lint: setup-dev ## Mend what ruff can mend
	@$(BIN)/ruff check --fix .

format: setup-dev ## Format all code
	@$(BIN)/ruff format .

protos: setup-dev ## Generate services/emoe/v1 from protos/
	@$(BIN)/python tools/protos.py generate

crd: setup-dev ## Generate the chart's CRD from services/emoe/api
	@$(BIN)/python tools/crd.py generate

bench-peers: setup-dev ## Install the engines that `emoe bench engine` is compared with, each in .venv-peers (10 minutes: llama.cpp is built)
	@nice $(BIN)/python -m emoe.bench.peers.install $(ARGS)

setup-demo:
	@sh tools/setup.sh --extra all --no-default-groups --inexact

setup-dev:
	@sh tools/setup.sh --extra all --group dev --group train
