# make help lists what there is to make.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help env demo test test-slurm test-reliability lint clean

ENVIRONMENT := tools/.setup/done
ENVIRONMENT_SOURCES := $(wildcard tools/requirements*.txt) tools/overrides.txt tools/setup.sh \
    tools/check_install.py setup.py
PYTHON = . tools/activate_python.sh && python
SHELL_SCRIPTS = $(shell git ls-files -co --exclude-standard '*.sh' '*.pl')

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

$(ENVIRONMENT): $(ENVIRONMENT_SOURCES)
	tools/setup.sh --dev

env: $(ENVIRONMENT) ## the Python environment, with what the tests need

demo: $(ENVIRONMENT) ## the whole pipeline on a small synthetic corpus
	cd egs/mini_espeak/adaltm1 && ./run.sh --size quick

test: lint ## style, and all tests but those of the two lines below
	export OMP_NUM_THREADS=1; $(PYTHON) -m pytest -n 2 --dist worksteal --durations=15 -m "not slurm and not reliability" tests

test-slurm: $(ENVIRONMENT) ## the recipe on a Slurm that is started here (Debian: slurm-wlm, munge)
	export OMP_NUM_THREADS=1; $(PYTHON) -m pytest -m slurm tests/recipes/test_slurm.py

test-reliability: $(ENVIRONMENT) ## a hundred kills of the recipe at random moments; half an hour
	export OMP_NUM_THREADS=1; $(PYTHON) -m pytest -m reliability tests/recipes/test_reliability.py

lint: $(ENVIRONMENT) ## style of Python and shell
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	if command -v shellcheck >/dev/null; then shellcheck -x -P SCRIPTDIR -P . $(SHELL_SCRIPTS); fi

clean: ## remove caches and what the synthetic corpus left
	rm -rf .pytest_cache .ruff_cache egs/mini_espeak/adaltm1/{data,dump,exp}
	find espnet_adaltm tests -name __pycache__ -type d -exec rm -rf {} +
