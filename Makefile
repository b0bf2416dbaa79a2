# make demo   the whole job on the example data, from nothing: environment, training, result in out/
# make test   all tests; make test-fast: those that need no whole job, in a minute or two
# make mutants  faults put into a copy of the package: which ones do the tests not see? ARGS=
# make lint   ruff, mypy, and whether pytest finds all tests together
# make bench  ourselves beside pacemaker (and ace-jax) on the silicon set; TRAIN=, TEST=, ARGS=
# make lock   new hash locks from requirements/*.in
# make image  the container for NVIDIA GPUs (image-cuda); make image-cpu: the one without
# make compose  the example data in the container, result in the volume <folder of the clone>_out
# Python 3.12 or 3.11; a pyenv shim may be on the PATH without one behind it.
PYTHON ?= $(shell for p in python3.12 python3.11 python3; do $$p -c '' 2>/dev/null && echo $$p && break; done)
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d%d" % sys.version_info[:2])')
BIN := .venv/bin

.PHONY: demo test test-fast mutants lint bench lock image image-cuda image-cpu compose clean

demo: .venv/cpu
	$(BIN)/python -m examples.demo

# Two streams at once, a file in one of them: half the time of tests is waiting, for kills, limits of time and a cluster.
test: .venv/dev
	$(BIN)/python -m pytest -n 2 --dist loadfile

mutants: .venv/dev
	$(BIN)/python tests/mutants.py $(ARGS)

test-fast: .venv/dev
	$(BIN)/python -m pytest -m "not slow"

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --collect-only --quiet --quiet

# ace-jax comes into an environment of its own.
TRAIN ?= ../shared/data/si-zuo2020/train.extxyz
TEST ?= ../shared/data/si-zuo2020/test.extxyz
PARTS := mlip-pace ace-jax pacemaker workers rows predict collect growth
bench: .venv/dev .venv/ace-jax
	$(BIN)/python benchmarks/bench.py --ace-jax .venv/ace-jax/bin/aj $(TRAIN) $(TEST) $(or $(ARGS),$(PARTS))

.venv/ace-jax:
	$(PYTHON) -m venv $@
	$@/bin/python -m pip install --quiet ace-jax==0.4.1

# The image for NVIDIA GPUs, and the one without; BASE_IMAGE=... takes another base.
IMAGE := docker build --build-arg VERSION=$$(sed -n 's/^__version__ = "\(.*\)"/\1/p' mlip_pace/__init__.py) --build-arg REVISION=$$(git rev-parse HEAD 2>/dev/null || echo unknown)
image: image-cuda
image-cuda:
	$(IMAGE) --build-arg VARIANT=cuda $(if $(BASE_IMAGE),--build-arg BASE_IMAGE=$(BASE_IMAGE)) --tag mlip-pace:cuda .
image-cpu:
	$(IMAGE) --build-arg VARIANT=cpu --build-arg BASE_IMAGE=$(or $(BASE_IMAGE),debian:bookworm-slim) --tag mlip-pace:cpu .

compose:
	docker compose run --rm --build mlip-pace

.venv/cpu: requirements/cpu-py$(VERSION).txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes --only-binary :all: -r $<
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

.venv/dev: requirements/dev-py$(VERSION).txt .venv/cpu
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes --only-binary :all: -r $<
	touch $@

# TensorFlow for the CPU stands in for the one with CUDA that tensorpotential asks for (requirements/overrides.txt); what both
# variants have, they have in the same version.
requirements/%.txt:
	@echo "there is no lock for this Python ($$($(PYTHON) --version 2>&1)): mlip-pace is locked for Python 3.11 and 3.12, because" >&2
	@echo "python-ace has wheels for no other; install one of them, or say which: make PYTHON=python3.12 ..." >&2
	@exit 1

UV := .tools/bin/uv
lock: $(UV)
	for python in 3.11 3.12; do for kind in cpu dev cuda sbom; do \
	  lock=requirements/$$kind-py$$(echo $$python | tr -d .).txt; \
	  case $$kind in \
	    cuda) extra="--constraint $$(echo $$lock | sed s/cuda/cpu/)";; \
	    *) extra="--override requirements/overrides.txt";; \
	  esac; \
	  $(UV) pip compile --quiet --upgrade --generate-hashes --no-annotate --no-header --only-binary :all: \
	    --python-version $$python --python-platform x86_64-manylinux_2_28 $$extra requirements/$$kind.in -o $$lock || exit 1; \
	done; done

$(UV):
	$(PYTHON) -m venv .tools
	.tools/bin/python -m pip install --quiet uv==0.13.9

clean:
	rm -rf .venv .tools out
