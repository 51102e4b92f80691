# `make demo` and `make test` are the only commands a newcomer needs. Both set up what is missing
# (a Python environment in .venv, the Temporal server in the user's cache) and say what they do.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup python temporal stock packages demo test check format lock chaos scale docker cluster bench clean

VENV := .venv/bin
PYTEST := $(VENV)/python -m pytest
# Four at a time on two cores: most of the time is waited for real servers and processes. A test
# module stays on one worker (loadscope), where it can share a server; slow ones come first.
PARALLEL ?= -n 4 --dist loadscope --no-loadscope-reorder
# Extra arguments for pytest: make test ARGS='tests/worker -k engine'
ARGS ?=

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: python temporal ## put the Python environment and the Temporal server in place

python:
	@tools/setup

temporal: python
	@$(VENV)/python -m worker.provision

# What tests use beside the server: Temporal's own command line, and its web UI where a browser can look at it.
stock: temporal
	@$(VENV)/python -m worker.provision cli $$(command -v chromedriver >/dev/null && echo ui)

packages:
	@tools/packages

demo: setup ## watch a real etcd cluster move, fail, go back and go on
	@$(VENV)/kedge demo

test: setup packages stock ## run every test that needs neither containers nor hours
	$(PYTEST) $(PARALLEL) -m 'not chaos and not scale and not docker and not cluster' $(ARGS)

check: python ## ruff, strict types, import contracts
	@# All of them, so that one run tells all.
	@failed=; for check in 'ruff check .' 'ruff format --check .' 'mypy .' lint-imports; do \
	    echo "--- $$check"; $(VENV)/$$check || failed="$$failed [$$check]"; \
	done; [ -z "$$failed" ] || { echo "FAILED:$$failed"; exit 1; }

format: python ## format the code and mend what ruff can mend
	$(VENV)/ruff check --fix .
	$(VENV)/ruff format .

lock: python ## write the lock files anew from pyproject.toml, keeping existing pins
	@tools/lock

chaos: setup packages ## kill every process at every point, and look whether anything is done twice
	$(PYTEST) -n 2 --dist worksteal -m chaos $(ARGS)

scale: setup ## a thousand nodes and more
	$(PYTEST) -m scale $(ARGS)

docker: setup ## tests that need a container engine (as root on Debian one is started for them)
	tools/containers $(PYTEST) -m docker $(ARGS)

cluster: setup packages ## bring docker-compose.yml up and migrate through it, also without a registry of images
	tools/containers $(PYTEST) -m cluster $(ARGS)

bench: setup ## print the time per node, the largest history and the worker's memory
	@$(VENV)/python -m bench

clean: ## remove the environment and every cache of this checkout (not running engines, not .kedge)
	rm -rf .venv .venv.lock build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
