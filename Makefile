# `make repro` and `make test` are all it takes on a fresh clone; python3 (3.11 or newer), git and make must be there.

PYTHON ?= python3
BIN := .venv/bin
# The stages and the tests find the environment's programs as if it were activated.
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Nothing is fetched from a model hub, and DVC sends no usage statistics.
export HF_HUB_OFFLINE := 1
export DVC_NO_ANALYTICS := 1
# Whatever the locale, files are UTF-8.
export PYTHONUTF8 := 1
# It would come before the environment's own packages.
unexport PYTHONPATH

.PHONY: help env repro test check bench format sample clean

help:  ## list the commands
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | expand -t 10

env: .venv/ready  ## environment in .venv

repro: .venv/ready  ## environment, all stages on the sample (or on data.archive), metrics
	dvc repro
	dvc metrics show metrics/test.json

test: .venv/ready  ## environment, all tests
	python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

check: .venv/ready  ## formatter, linter, types
	ruff format --check .
	ruff check .
	mypy

# quality.py does not run again what its file already has.
bench: .venv/ready  ## quality and speed against what a user would use instead
	rm -f benchmarks/results/quality_sample.json
	python benchmarks/quality.py --seeds 1 --only majority,svm_word,svm_char,svm_both --json benchmarks/results/quality_sample.json
	for name in tokenization throughput inference scale; do \
		python benchmarks/$$name.py --json benchmarks/results/$$name.json || exit 1; \
	done

format: .venv/ready  ## format the code
	ruff check --fix .
	ruff format .

sample: .venv/ready  ## write data/sample.zip anew (the same bytes)
	python data/make_sample.py data/sample.zip

clean:  ## remove what the stages made and the caches of tools; the environment and DVC's cache stay
	rm -rf data/raw data/tokenized models/tokenizer models/pretrained models/finetuned
	rm -rf runs .checkpoints dvc_plots .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src tests data benchmarks -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

# A marker file, so that the environment is made once, and again when the pinned versions change; what an attempt that
# failed has left is removed. Compiled on all cores and without what nobody imports here, which takes half the time that
# pip would.
.venv/ready: requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(if $(wildcard $@),,--clear) .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	-$(BIN)/python -m compileall -qq -j 0 -x '/tests/|torch/testing/|transformers/models/(?!auto|bert/)' .venv/lib
	touch $@
