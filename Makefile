# `make help` lists the targets. They need Python 3.11 or newer with its `venv`, and nothing else.
# All paths are relative: the clone may be in a directory with a space in its name.

MAKEFLAGS += --no-print-directory
export PIP_ROOT_USER_ACTION = ignore
export PIP_DISABLE_PIP_VERSION_CHECK = 1
export PIP_NO_INPUT = 1
unexport PYTHONHOME PYTHONPATH  # they would put another project's modules first
unexport PYTHONDONTWRITEBYTECODE  # each process would compile every module again, which costs the tests a fifth of their time

# The first of these that runs, is new enough and can make an environment. `make PYTHON=...` chooses another.
PYTHONS = python3.14 python3.13 python3.12 python3.11 python3
ABLE = import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))

.PHONY: help
help: ## List the targets.
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile

.PHONY: dev
dev: explorer ## Serve the bank on http://127.0.0.1:8000/graphql, with a PostgreSQL of its own. PORT=8001 changes the port.
	@exec .venv/bin/headwater dev $${PORT:+--port "$$PORT"}

.PHONY: test
test: explorer ## Run every test. ARGS="-k money" selects.
	@.venv/bin/python -m pytest -n 2 --dist worksteal $(ARGS)

.PHONY: unit
unit: venv ## Run the tests that need no PostgreSQL, in seconds. ARGS="-k money" selects.
	@.venv/bin/python -m pytest -q -m "not server" -n 2 --dist worksteal $(ARGS)

.PHONY: check
check: venv ## Lint, format, types, import contracts, and drift of the generated files.
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/pyright --warnings
	.venv/bin/lint-imports
	.venv/bin/check-jsonschema --quiet --builtin-schema vendor.compose-spec docker-compose.yml
	.venv/bin/check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/ci.yml
	.venv/bin/check-jsonschema --quiet --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/bug.yml .github/ISSUE_TEMPLATE/feature.yml
	.venv/bin/kubernetes-validate --quiet --no-warn --strict --kubernetes-version 1.32 deploy/kubernetes/*.yaml
	.venv/bin/headwater schema --check
	.venv/bin/python -m pytest -q tests/postgres/test_migrations.py

.PHONY: docs
docs: venv ## Build the documentation into build/docs; a dead link or an unresolved reference is an error.
	@.venv/bin/python -m sphinx --fresh-env --fail-on-warning --keep-going --quiet -d build/.doctrees docs build/docs

.PHONY: bench
bench: venv ## Measure, and print each figure beside its floor. ARGS=appending selects.
	@.venv/bin/python -m benchmarks $(ARGS)

.PHONY: schema
schema: venv ## Write schema.graphql from the bank, and migrations/schema.sql from the migrations.
	@.venv/bin/headwater schema > schema.graphql.new || { rm schema.graphql.new; exit 1; }
	@mv schema.graphql.new schema.graphql
	@.venv/bin/python migrations/dump.py > schema.sql.new || { rm schema.sql.new; exit 1; }
	@mv schema.sql.new migrations/schema.sql

.PHONY: explorer
explorer: venv ## Build the explorer (GraphiQL) if its sources changed.
	@.venv/bin/python explorer/build.py

.PHONY: lock
lock: venv ## Pin the newest versions that pyproject.toml allows, with their hashes.
	@.venv/bin/uv $(COMPILE) --upgrade --extra dev --output-file requirements.txt pyproject.toml
	@.venv/bin/uv $(COMPILE) --constraints requirements.txt --no-annotate --output-file requirements-runtime.txt pyproject.toml

COMPILE = pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --custom-compile-command "make lock"

.PHONY: clean
clean: ## Remove everything that was installed and built. The data in .headwater stays.
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	rm -rf explorer/node_modules explorer/.node explorer/.lock src/headwater/graphql/explorer/static
	find src tests migrations -name __pycache__ -prune -exec rm -rf {} +

# The environment is made again when the requirements, its path (which its scripts contain) or its Python have changed.
# Headwater is installed into it again when pyproject.toml has changed. Two files in .venv keep what they were made for.
.PHONY: venv
venv: ## Make .venv from the pinned requirements.
	@made="$$(cksum < requirements.txt) $$(uname -sm) $$(pwd -P)"; \
	if [ "$$(cat .venv/.made-for 2>&1)" != "$$made" ] || ! .venv/bin/python -c '' 2>/dev/null; then \
		$(find_python); \
		printf 'environment: installing .venv with %s ... ' "$$("$$python" --version)"; began=$$(date +%s); \
		rm -rf .venv && "$$python" -m venv .venv || exit 1; \
		.venv/bin/python -m pip install -qq --require-hashes --only-binary :all: -r requirements.txt || exit 1; \
		echo "$$made" > .venv/.made-for; \
		echo "$$(($$(date +%s) - began)) s"; \
	fi; \
	installed="$$(cksum < pyproject.toml)"; \
	if [ "$$(cat .venv/.installed 2>&1)" != "$$installed" ]; then \
		.venv/bin/python -m pip install -qq --no-deps --no-build-isolation --editable . || exit 1; \
		echo "$$installed" > .venv/.installed; \
	fi

define find_python
python="$(PYTHON)"; \
if [ -z "$$python" ]; then \
	for each in $(PYTHONS); do \
		if "$$each" -c '$(ABLE)' 2>/dev/null; then python="$$each"; break; fi; \
	done; \
fi; \
if [ -z "$$python" ]; then \
	echo "Headwater needs Python 3.11 or newer with venv (on Debian: apt-get install python3 python3-venv)." >&2; \
	echo "None of $(PYTHONS) is usable; choose one by make PYTHON=/path/to/python." >&2; \
	exit 1; \
fi
endef
