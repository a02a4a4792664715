# Every verb works on a fresh clone: Python >= 3.11, git and make are all it takes.
PYTHON ?= python3
COMPILE = .venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --custom-compile-command "make pins"

.PHONY: help demo compare test test-sqlite test-faults test-vacuous test-interleavings test-platforms test-docker mutants storm storm-proof lint format types check models pins

help: ## list the verbs
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: .venv ## watch trials expire by both paths, on real data
	DJANGO_SETTINGS_MODULE=sandbox.settings .venv/bin/python manage.py demo $(ARGS)

compare: .venv ## measure the paths side by side on this machine: about six minutes, ARGS=--quick about one; --html FILE for a page
	DJANGO_SETTINGS_MODULE=sandbox.settings .venv/bin/python manage.py compare_paths $(ARGS)

test: .venv ## the tests, on a real PostgreSQL and a real broker that come with them
	.venv/bin/python -m pytest -n 2 $(ARGS)

test-sqlite: .venv ## what SQLite can do of them
	TEST_DATABASE_URL=sqlite:/// .venv/bin/python -m pytest -n 2 $(ARGS)

test-faults: .venv ## worker, beat, broker, database and mail server killed, frozen and restarted: minutes
	.venv/bin/python -m pytest -n 2 --dist worksteal -m faults $(ARGS)

test-vacuous: .venv ## the tests of tests/faults without their faults: each must fail; minutes
	TEST_WITHOUT_FAULTS=1 .venv/bin/python -m pytest -n 4 -m faults -rxs tests/faults $(ARGS)

test-interleavings: .venv ## every order of the statements of two verbs; minutes
	.venv/bin/python -m pytest -n 2 -m interleavings tests/test_interleavings.py $(ARGS)

test-platforms: .venv ## the fast tests on other Pythons, Djangos, redis-pys and PostgreSQLs, as far as they are installed: an hour; ARGS="'PostgreSQL 15'" some
	.venv/bin/python -m tests.platforms $(ARGS)

test-docker: .venv ## the image and docker-compose.yml; needs a Docker engine
	.venv/bin/python -m pytest -m docker tests/docker $(ARGS)

mutants: .venv ## which small changes of the code do the tests notice? about ten seconds each; ARGS="--count 200 accounts/slices.py"
	.venv/bin/python -m tests.mutants $(ARGS)

storm: .venv ## every fault at once, SEED=7 MINUTES=2, and then a checker that imports nothing of what it checks
	.venv/bin/python -m tests.storm --seed $(or $(SEED),7) --minutes $(or $(MINUTES),2) $(ARGS)

storm-proof: .venv ## bugs planted in copies of the project, which the storm must find; writes docs/evidence.md; half an hour
	.venv/bin/python -m tests.storm --proof $(ARGS)

lint: .venv ## what ruff has to say, and the direction of imports
	.venv/bin/ruff check .
	.venv/bin/lint-imports --no-cache

format: .venv ## write everything as ruff would; ARGS=--check only tells
	.venv/bin/ruff format $(ARGS) .

types: .venv ## mypy, strict
	.venv/bin/mypy .

check: .venv ## Django's checks, also those of a deployment, and that no migration is missing
	.venv/bin/python manage.py makemigrations --check --dry-run
	.venv/bin/python manage.py check --fail-level=WARNING
	DJANGO_DEBUG=0 DJANGO_SECRET_KEY=$$(.venv/bin/python -c 'import secrets; print(secrets.token_urlsafe(50))') DJANGO_ALLOWED_HOSTS=trials.example.com DATABASE_URL=postgres://trials@localhost/trials .venv/bin/python manage.py check --deploy --fail-level=WARNING

models: .venv ## draw docs/models.svg; needs Graphviz
	.venv/bin/python manage.py graph_models accounts users --pydot --no-inheritance --exclude-models AbstractUser,Group,Permission --disable-sort-fields --hide-edge-labels --rankdir LR --output docs/models.svg

pins: .venv ## compile requirements*.txt from pyproject.toml; ARGS=--upgrade moves them forward
	$(COMPILE) $(ARGS) pyproject.toml -o requirements.txt
	$(COMPILE) $(ARGS) pyproject.toml --all-extras -o requirements-extras.txt
	$(COMPILE) $(ARGS) pyproject.toml --all-extras --group dev -o requirements-dev.txt

.venv: requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed and this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.13")'
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check uv
	.venv/bin/uv pip sync --quiet --compile-bytecode --python .venv/bin/python --require-hashes requirements-dev.txt
	@touch .venv
