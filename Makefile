# make test, make demo, make docs: from a fresh clone, with nothing but Python >= 3.10.
#   PYTHON=python3.12     the Python that creates .venv (an existing .venv is reused)
#   DATA=dir              make demo: the data set's folder
#   CONSTRAINTS=file      versions for pip, e.g. .ci/oldest.txt

PYTHON ?= python3
PY := .venv/bin/python

.PHONY: test demo docs clean

test: .venv/.installed
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -m pytest -q -n auto --dist worksteal

demo: .venv/.installed
	$(PY) -m benchmarks.demo $(if $(DATA),--data-dir "$(DATA)")

# site/index.html opens in a browser; its search needs a server: python -m http.server -d site
docs: .venv/.installed
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

.venv/.installed: setup.cfg pyproject.toml
	@$(PY) -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv .venv || { \
		echo 'Could not create .venv with "$(PYTHON) -m venv". It takes Python >= 3.10 with venv and pip:'; \
		echo 'on Debian or Ubuntu, "apt install python3-venv". Or name another: make PYTHON=/path/to/python3'; \
		exit 1; } >&2
	$(PY) -m pip install $(if $(CONSTRAINTS),-c "$(CONSTRAINTS)") -e ".[dev]"
	@touch $@

# keeps .venv, data/ and runs/
clean:
	rm -rf build dist demo output site *.egg-info .pytest_cache .ruff_cache
	find . -name .venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
