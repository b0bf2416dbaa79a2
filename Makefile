# make demo   the whole job on the example data, from nothing: environment, training, result in out/
# make test   all tests
# make lint   ruff and mypy
# make lock   new hash locks from requirements/*.in
# Python 3.12 or 3.11; a pyenv shim may be on the PATH without one behind it.
PYTHON ?= $(shell for p in python3.12 python3.11 python3; do $$p -c '' 2>/dev/null && echo $$p && break; done)
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d%d" % sys.version_info[:2])')
BIN := .venv/bin

.PHONY: demo test lint lock clean

demo: .venv/cpu
	$(BIN)/python -m examples.demo

test: .venv/dev
	$(BIN)/python -m pytest

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/cpu: requirements/cpu-py$(VERSION).txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes --only-binary :all: -r $<
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

.venv/dev: requirements/dev-py$(VERSION).txt .venv/cpu
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes --only-binary :all: -r $<
	touch $@

# TensorFlow for the CPU stands in for the one with CUDA that tensorpotential asks for (requirements/overrides.txt).
UV := .tools/bin/uv
lock: $(UV)
	for python in 3.11 3.12; do for kind in cpu dev; do \
	  $(UV) pip compile --quiet --upgrade --generate-hashes --no-annotate --no-header --only-binary :all: \
	    --python-version $$python --python-platform x86_64-manylinux_2_28 --override requirements/overrides.txt \
	    requirements/$$kind.in -o requirements/$$kind-py$$(echo $$python | tr -d .).txt || exit 1; \
	done; done

$(UV):
	$(PYTHON) -m venv .tools
	.tools/bin/python -m pip install --quiet uv==0.13.9

clean:
	rm -rf .venv .tools out
