# The verbs of visionloop. `make` alone prints them; .ci/run and .github/workflows/ci.yml call the same ones.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

# Telemetry is off, whoever is called.
export DVC_NO_ANALYTICS := 1
export DO_NOT_TRACK := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false
# Test workers, of one thread each: one more than there are processors, since many tests wait for servers, and no more than
# four, since tests start trainings and servers of their own.
WORKERS ?= $(shell n=$$(( $$(getconf _NPROCESSORS_ONLN) + 1 )); echo $$(( n < 4 ? n : 4 )))

# 3.11 is what the locks are made and tested for. `make run PYTHON=/path/to/python3.11` chooses another one.
PYTHON ?=
VENV ?= .venv
TRITON_VENV ?= .venv-triton
BIN := $(VENV)/bin

# A stamp carries the hash of what it was made from: a changed lock makes another stamp, an unchanged one costs nothing.
hash = $(shell cat $(1) 2>/dev/null | sha256sum | cut -c1-16)
DEPS := $(VENV)/.deps-$(call hash,requirements.lock requirements-uv.lock)
DEV := $(VENV)/.dev-$(call hash,requirements-dev.lock requirements-uv.lock)
PROJECT := $(VENV)/.project-$(shell { cat pyproject.toml; echo $(CURDIR); } 2>/dev/null | sha256sum | cut -c1-16)
TRITON := $(TRITON_VENV)/.deps-$(call hash,requirements-triton.lock requirements-uv.lock)

# An environment whose set-up was interrupted is made anew: half a package looks whole to an installer.
define make_venv
	if [ -e $(1)/.installing ]; then echo "The set-up of $(1) was interrupted; it is made anew."; rm -rf $(1); fi; \
	mkdir -p $(1); touch $(1)/.installing; \
	if [ ! -x $(1)/bin/python ]; then \
		found=; for python in $(if $(PYTHON),$(PYTHON),python3.11 python3 python); do \
			if "$$python" -c 'import sys, venv, ensurepip; raise SystemExit(sys.version_info[:2] != (3, 11))' 2>/dev/null; \
			then found=$$python; break; fi; done; \
		if [ -z "$$found" ]; then rm -rf $(1); \
			echo "Python 3.11 with venv is needed and was not found; install it (Debian: apt-get install python3.11-venv)," \
				"or name it: make run PYTHON=/path/to/python3.11" >&2; exit 1; fi; \
		"$$found" -m venv $(1); fi
endef

# uv does not read pip's configuration; an index that pip is told to use is handed on.
uv = env UV_HTTP_TIMEOUT=180 $$([ -n "$${UV_DEFAULT_INDEX:-}" ] || $(BIN)/python -m pip config get global.index-url 2>/dev/null \
	| sed s/^/UV_DEFAULT_INDEX=/) $(BIN)/uv

# uv's list of 270 packages hides what matters; its errors and totals stay.
unlisted = 2> >(grep -v '^ [+~-] ' >&2)

.PHONY: help run test check setup setup-dev deps lock doctor up monitor simulate status docs format clean

help:  ## print the verbs
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: setup  ## the main job: build, serve, send images, judge drift, sum up (sets up what it needs)
	@$(BIN)/visionloop run

test: setup-dev  ## all tests (sets up what they need)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

check: setup-dev  ## formatting, linting, types, import directions, Dockerfile, YAML, texts
	@PATH="$(abspath $(BIN)):$$PATH"; \
	ruff check .; \
	ruff format --check .; \
	mypy; \
	lint-imports --no-cache; \
	python -m pipeline.dependencies; \
	hadolint Dockerfile; \
	yamllint --strict .; \
	bash -n .ci/run; \
	python -m pytest -q -p no:xdist tests/contract/test_docs.py tests/contract/test_house.py

setup: $(PROJECT) $(TRITON)  ## the two environments: the project's and the Triton runtime's
setup-dev: $(DEV) setup  ## the same, with the tools for tests and checks

doctor: setup  ## check every precondition and say what to do
	@$(BIN)/visionloop doctor

up: setup  ## Triton, Prefect and the Evidently UI together, until Ctrl-C
	@$(BIN)/visionloop up

monitor: setup  ## judge the newest window of predictions
	@$(BIN)/visionloop monitor

simulate: setup  ## send shifted images to the running endpoint (ARGS="--shift blur --severity 3")
	@$(BIN)/visionloop simulate $(ARGS)

status: setup  ## what is stale, what runs, what was decided last
	@$(BIN)/visionloop status

docs: setup  ## write the tree and the measured figures into README.md
	@$(BIN)/python -m pipeline.readme

format: setup-dev  ## format the code and sort the imports
	@$(BIN)/ruff check --fix --quiet . ; $(BIN)/ruff format .

# OpenVINO runs without the package that sends its telemetry, so no lock holds that.
lock: $(BIN)/uv  ## resolve requirements*.in anew into requirements*.lock
	@compile="pip compile --quiet --no-emit-package openvino-telemetry --no-header --no-emit-index-url --no-annotate --generate-hashes --python-version 3.11"; \
	$(uv) $$compile --upgrade requirements-uv.in -o requirements-uv.lock; \
	$(uv) $$compile $(UPGRADE) requirements-dev.in -o requirements-dev.lock; \
	$(uv) $$compile $(UPGRADE) -c requirements-dev.lock requirements.in -o requirements.lock; \
	$(uv) $$compile $(UPGRADE) requirements-triton.in -o requirements-triton.lock; \
	echo "nvidia-pytriton==0.7.0" | $(uv) $$compile --no-deps - >> requirements-triton.lock

clean:  ## remove what running wrote (var/) and the caches of tools; data, models and environments stay
	@rm -rf var .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -not -path './.venv*' -prune -exec rm -rf {} +

deps: $(DEPS) $(TRITON)

$(BIN)/uv:
	@$(call make_venv,$(VENV))
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements-uv.lock
	@rm -f $(VENV)/.installing

$(DEPS):
	@echo "Installing the project's environment in $(VENV): about 7 GB, once; downloading takes minutes, compiling one in silence."
	@$(call make_venv,$(VENV))
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements-uv.lock
	@$(uv) pip install --compile-bytecode --python $(BIN)/python --require-hashes --no-deps -r requirements.lock $(unlisted)
	@rm -f $(VENV)/.deps-* $(VENV)/.installing; touch $@

$(DEV): $(DEPS)
	@echo "Installing the tools for tests and checks in $(VENV)."
	@$(call make_venv,$(VENV))
	@$(uv) pip install --compile-bytecode --python $(BIN)/python --require-hashes --no-deps -r requirements-dev.lock $(unlisted)
	@rm -f $(VENV)/.dev-* $(VENV)/.installing; touch $@

$(PROJECT): $(DEPS)
	@$(uv) pip install --quiet --python $(BIN)/python --no-build-isolation --no-deps -e .
	@rm -f $(VENV)/.project-*; touch $@

$(TRITON): $(DEPS)
	@echo "Installing the Triton runtime in $(TRITON_VENV)."
	@$(call make_venv,$(TRITON_VENV))
	@$(uv) pip install --compile-bytecode --python $(TRITON_VENV)/bin/python --require-hashes --no-deps -r requirements-triton.lock $(unlisted)
	@rm -f $(TRITON_VENV)/.deps-* $(TRITON_VENV)/.installing; touch $@
