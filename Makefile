# The commands of this project; `make help` explains them.
# Everything that they make lies under .local/; only missing Debian packages go elsewhere.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.NOTPARALLEL:

# Without compiled modules every start of every process would compile everything again, for seconds.
unexport PYTHONDONTWRITEBYTECODE

bin := .local/venv/bin
set_up := ./infra/local/setup.sh
# Each of the two has servers of its own. A server that is given is used as it is, so by one alone.
in_parallel := $(if $(HOLDFAST_BROKER_URL)$(HOLDFAST_DATABASE_URL),,--numprocesses 2 --dist loadfile --no-loadscope-reorder)

.PHONY: help demo test chaos check up down status clean bench drill lock static docs contract dependencies

help: ## this list
	@awk 'BEGIN { FS = ":.*## " } /^[a-z]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## set everything up, run the whole path with real messages, show and audit it (< 2 minutes)
	@$(set_up) runtime
	@$(bin)/python -m ops.demo

test: ## set everything up, then run every check and test on real services
	@$(set_up) dev
	@$(MAKE) --no-print-directory static
	@$(bin)/python -m infra.local.dependencies
	$(bin)/pytest $(in_parallel)

check: ## what can be checked without services: lint, types, import rules, unit tests (< 1 minute)
	@$(set_up) checks
	@$(MAKE) --no-print-directory static
	$(bin)/pytest $(in_parallel) tests/unit

chaos: ## break everything under load for 4 minutes and account for each event (CHAOS="--seconds 600 --seed 7")
	@$(set_up) dev
	@PYTHONPATH=tests $(bin)/python -m chaos $(CHAOS)

dependencies: ## known weaknesses of what is pinned (asks the package index), and its bill of materials in .local/sbom.json
	@$(set_up) pages
	@$(bin)/python -m infra.local.dependencies

# Ruff's rules S are the security lint: see pyproject.toml.
static:
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/mypy
	$(bin)/lint-imports

up: ## start RabbitMQ, PostgreSQL, the simulated bank and the workers in the background (HOLDFAST_SCALE="payment=2")
	@$(set_up) runtime
	@$(bin)/python -m infra.local up

down: ## stop them; data is kept
	@if [ -x $(bin)/python ]; then $(bin)/python -m infra.local down; fi

status: ## which processes run
	@if [ -x $(bin)/python ]; then $(bin)/python -m infra.local status; fi

clean: ## stop everything and delete .local/ with all its data
	@if [ -x $(bin)/python ]; then $(bin)/python -m infra.local down --everything; fi
	rm -rf .local

drill: ## restore a database to an earlier moment beside an empty broker, and recover (a minute)
	@$(set_up) dev
	@HOLDFAST_DRILL=1 $(bin)/pytest tests/recovery --quiet

bench: ## measure orders per second against stock Dramatiq and the obvious way (minutes)
	@$(set_up) bench
	@$(bin)/python bench

docs: ## the documentation as a site in .local/site, built without network
	@$(set_up) pages
	@NO_MKDOCS_2_WARNING=1 $(bin)/mkdocs build --strict --quiet
	@echo "open .local/site/index.html"

contract: ## make what is made from code: JSON Schemas, AsyncAPI document, docs/events.md, rights, alerts for Kubernetes
	@$(set_up) pages
	@$(bin)/holdfast contract write docs
	@$(bin)/python -m infra.observability.prometheus_rules

lock: ## choose the newest versions of all dependencies and pin them with their hashes
	@./infra/local/lock.sh
