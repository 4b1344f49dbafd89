# Every target works on a machine that has Python 3.11+ and make.
PYTHON ?= python3
PIP = -m pip install --quiet --disable-pip-version-check
# For the build environment too, which --constraint does not reach.
export PIP_CONSTRAINT = $(CURDIR)/constraints.txt

# Two at a time, each with one thread: more are no faster on two cores.
TEST = OMP_NUM_THREADS=1 .venv-test/bin/python -m pytest -n 2 --dist worksteal

.PHONY: help demo page test test-all test-browser fuzz check bench docs clean
help:            ## show this
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/'

demo: .venv/ready  ## train, attribute and prove on real text, in minutes; a second run reuses what exists
	.venv/bin/whence demo

page: demo  ## the demo, then its page: ask the demo's store in a browser
	.venv/bin/whence serve whence-demo/store --questions whence-demo/questions.jsonl --open

test: .venv-test/ready  ## the tests, under 12 minutes on 2 cores
	$(TEST) -m "not slow and not browser"

test-all: .venv-test/ready  ## the tests, the long ones too
	$(TEST) -m "not browser"

# Chromium from the system's package manager where there is none yet; Playwright's own where that has none.
test-browser: .venv-test/ready  ## the page in a real browser; installs Chromium
	command -v chromium chromium-browser google-chrome >/dev/null \
	  || { command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ] && apt-get update -q && apt-get install -qy chromium; } \
	  || .venv-test/bin/python -m playwright install chromium
	.venv-test/bin/python -m pytest -m browser tests/test_page.py

SECONDS ?= 600
SEED ?= 0
JOBS ?= 1
fuzz: .venv-test/ready  ## random models, data and questions against plain autograd; SECONDS=600 SEED=0 JOBS=1
	OMP_NUM_THREADS=1 .venv-test/bin/python -m tests.fuzz.run --seconds $(SECONDS) --seed $(SEED) --jobs $(JOBS)

check: .venv-test/ready  ## format, lint, types, import ladder
	.venv-test/bin/ruff format --check .
	.venv-test/bin/ruff check .
	.venv-test/bin/basedpyright --pythonpath .venv-test/bin/python
	.venv-test/bin/lint-imports

bench: .venv-test/ready  ## print the tables of docs/results.md; about an hour the first time, for the banks
	.venv-test/bin/python benchmarks/build_speed.py
	.venv-test/bin/python benchmarks/query_speed.py
	.venv-test/bin/python benchmarks/install_size.py
	.venv-test/bin/python benchmarks/serve_load.py
	.venv-test/bin/python benchmarks/ekfac_speed.py
	.venv-test/bin/whence bench -o whence-bench
	.venv-test/bin/python benchmarks/bench_tables.py whence-bench

docs: .venv-test/ready  ## write the generated pages
	.venv-test/bin/python docs/generate.py

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	@echo "installing (torch is the large one) ..."
	.venv/bin/python $(PIP) --editable '.[serve]'
	@touch $@

.venv-test/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-test
	@echo "installing (torch is the large one) ..."
	.venv-test/bin/python $(PIP) --editable '.[dev]'
	@touch $@

clean:           ## remove environments and caches; keeps whence-demo
	rm -rf .venv .venv-test .pytest_cache .ruff_cache .hypothesis .import_linter_cache build dist
