# `make demo` and `make test` need only git, make and Python >= 3.11 on a fresh machine.
# TORCH_INDEX: the package index of another build of torch, such as one for an older GPU driver.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2
SLURM_LOG := build/test-slurm.log
.PHONY: install demo test test-slurm test-others test-docs test-fast gpu-check lint format types docs clean

install: $(VENV)/installed

# A stamp file: reinstall only when the lock or the package's metadata changes.
$(VENV)/installed: requirements-torch.lock requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "hpc_ecg needs Python >= 3.11; choose one: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo "this Python has no venv; on Debian: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -r requirements-torch.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

demo: install
	$(BIN)/python tools/demo.py

# The tests that start a Slurm mostly wait, so they run beside the others; what they print comes last.
test: install
	@mkdir -p build
	@$(MAKE) --no-print-directory --keep-going --jobs=2 test-slurm test-others; code=$$?; cat $(SLURM_LOG); exit $$code

test-slurm: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "slurm and not docs" > $(SLURM_LOG) 2>&1

# The tests of Triton's kernel need Triton, which a CPU build of torch does not bring.
$(VENV)/triton: $(VENV)/installed requirements-triton.lock
	$(BIN)/python -c 'import torch, sys; sys.exit(torch.version.cuda is None)' || $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements-triton.lock
	@touch $@

test-others: $(VENV)/triton
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slurm and not docs" -n $(WORKERS) --dist loadfile --no-loadscope-reorder

# The commands of README and tutorials, pages in a browser, a release.
test-docs: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m docs

test-fast: $(VENV)/triton
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n $(WORKERS) --dist worksteal

# Installs nothing: runs in PYTHON if that is given, else in the environment if it is there.
gpu-check: GIVEN := $(filter-out file,$(origin PYTHON))
gpu-check:
	$(if $(GIVEN),$(PYTHON),$(firstword $(wildcard $(BIN)/python) $(PYTHON))) tools/gpu_check.py $(GPU_CHECK)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: install
	$(BIN)/mypy

docs: install
	$(BIN)/python -m sphinx -W --keep-going -q docs build/docs
	@echo "build/docs/index.html"

clean:
	rm -rf $(VENV) build dist demo *.egg-info .pytest_cache .mypy_cache .ruff_cache
