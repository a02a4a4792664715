# Every verb works on a fresh clone: Python >= 3.11, git and make are all it takes.
PYTHON ?= python3
export CUSTOM_COMPILE_COMMAND = make pins
PINS = .venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --custom-compile-command "make pins"

.PHONY: help demo test test-sqlite test-docker lint format types check pins clean

help: ## list the verbs
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: .venv ## watch trials expire by both paths, on real data
	.venv/bin/python manage.py demo $(ARGS)

test: .venv ## run the tests on real PostgreSQL and Valkey
	.venv/bin/python -m pytest $(ARGS)

pins: .venv ## compile requirements*.txt from pyproject.toml; ARGS=--upgrade moves them forward
	$(PINS) $(ARGS) pyproject.toml -o requirements.txt
	$(PINS) $(ARGS) pyproject.toml --group dev -o requirements-dev.txt

.venv: requirements-dev.txt
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; try: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check uv
	.venv/bin/uv pip sync --quiet --python .venv/bin/python --require-hashes requirements-dev.txt
	@touch .venv
