# Works with Python >= 3.11 and make alone: the first target that needs the packages installs them, later calls do not.
# An active conda or virtual environment is used; without one the packages go into .venv.
# Every tool runs as `python -m …` of that environment, so nothing has to be activated.

.DEFAULT_GOAL := help
.PHONY: help setup demo real figures families bench pocket lab test quick lint clean

ifneq ($(VIRTUAL_ENV),)
ENV := $(VIRTUAL_ENV)
else ifneq ($(CONDA_PREFIX),)
# conda's base environment is no place for our packages; only base has the folder condabin.
ENV := $(if $(wildcard $(CONDA_PREFIX)/condabin),,$(CONDA_PREFIX))
endif
ifeq ($(ENV),)
ENV := .venv
endif
PY := "$(ENV)/bin/python"

# The mark of a finished installation. Its name changes with what is to be installed and from where.
MARK := $(ENV)/.sftbench-$(shell { pwd; cat pyproject.toml requirements.lock; } | cksum | tr ' ' '-')

# Who develops gets the tests' packages and those of the extras, which are tested too.
test quick lint: EXTRAS := [test,eval,track,documents,real]
real: EXTRAS := [real]
TORCH := $(shell grep '^torch==' requirements.lock)
PIP_INSTALL := $(PY) -m pip install -q -q --disable-pip-version-check --no-input -c requirements.lock

# Two processes of one thread each do more than one process of two.
EACH_CORE := OMP_NUM_THREADS=1

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile

setup:  ## make the environment and install the packages, unless that is done
	@test -e "$(MARK)$(EXTRAS)" || { $(NEW_ENV) && $(INSTALL); }

demo: setup  ## run the notebook of mode 2 on the pocket model and data; results in runs/demo
	@$(PY) -m sftbench notebook 2 --out runs/demo

real: setup  ## tune a real model, SmolLM2-135M, with and without reading; 15 minutes, results in runs/real
	@$(PY) -m sftbench fetch smollm2
	@$(PY) -m sftbench notebook notebooks/real_model.ipynb --out runs/real

figures: demo  ## draw README's picture anew
	cp runs/demo/loss.png docs/demo_loss.png

families: setup  ## try every family by every method, and list in docs/models.md what came of it
	@$(EACH_CORE) $(PY) benchmarks/families.py

bench: setup  ## measure time beside a raw loop, TRL and LLaMA-Factory, into docs/performance.md; a quiet machine, an hour
	@$(PY) benchmarks/performance.py $(ARGS)

pocket: setup  ## make the pocket's models again from nothing, into sftbench/pocket; some 20 minutes
	@$(PY) -m sftbench.pocket.build

# Jupyter wants to be told that root is meant, as in containers.
AS_ROOT := $(if $(filter 0,$(shell id -u)),--allow-root)

lab: setup  ## open JupyterLab on the notebooks; runs gather in runs/
	@SFTBENCH_RUNS="$${SFTBENCH_RUNS:-$(CURDIR)/runs}" PATH="$$(cd "$(ENV)/bin" && pwd):$$PATH" $(PY) -m jupyterlab --notebook-dir=. --LabApp.default_url=/lab/tree/notebooks $(AS_ROOT) $(ARGS)

test: setup  ## run every test (make test ARGS="-k word" for some)
	@$(PY) tests/browser.py
	@$(EACH_CORE) $(PY) -m pytest -n logical --maxprocesses 4 --dist loadgroup $(ARGS)

quick: setup  ## run the tests that take seconds
	@$(PY) -m pytest -m "not slow and not browser" $(ARGS)

lint: setup  ## check the style of the code
	@$(PY) -m ruff check .

clean:  ## remove caches and build products; runs and environments stay
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis
	find . \( -name .venv -o -name .git -o -name runs \) -prune -o \
		\( -name __pycache__ -o -name '*.egg-info' -o -name .ipynb_checkpoints \) -type d -prune -exec rm -rf {} +

# A virtual environment in .venv, of the first Python that will do (make PYTHON=… names another one).
# One that is there is kept if its Python still runs.
FITS := import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))
define NEW_ENV
{ \
	if [ "$(ENV)" = .venv ] && ! $(PY) -c 'import pip' 2>/dev/null; then \
		found=; \
		for python in $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11 python); do \
			if "$$python" -c '$(FITS)' 2>/dev/null; then found="$$python"; break; fi; \
		done; \
		if [ -z "$$found" ]; then \
			echo "sftbench needs Python 3.11 or newer with its venv module, and found none." >&2; \
			echo "Install one (on Debian and Ubuntu: python3 and python3-venv), or name it: make PYTHON=/path/to/python …" >&2; \
			exit 1; \
		fi; \
		"$$found" -m venv --clear .venv; \
	elif ! $(PY) -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
		echo "The environment $(ENV) has no Python 3.11 or newer with pip; leave it, or put them there." >&2; \
		exit 1; \
	fi; \
}
endef

# torch goes first and alone: where a build for this machine is at hand it stays, whatever other packages would draw.
define INSTALL
{ \
	echo "Installing sftbench and its packages into $(ENV): once, for several minutes." && \
	echo "1 of 2: $(TORCH)" && $(PIP_INSTALL) "$(TORCH)" && \
	echo "2 of 2: all other packages" && $(PIP_INSTALL) -e '.$(EXTRAS)' && \
	rm -f "$(ENV)"/.sftbench-* && touch "$(MARK)" "$(MARK)$(EXTRAS)" && echo "Installed."; \
}
endef
