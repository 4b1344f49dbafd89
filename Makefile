# Every target works on a machine that has Python 3.11+ and make.
PYTHON ?= python3
PIP = -m pip install --quiet --disable-pip-version-check
# For the build environment too, which --constraint does not reach.
export PIP_CONSTRAINT = $(CURDIR)/constraints.txt

# Two at a time, each with one thread: more are no faster on two cores.
TEST = OMP_NUM_THREADS=1 .venv-test/bin/python -m pytest -n 2 --dist worksteal

# What leans on PyTorch and transformers most; without the extras whose other requirements do not go with the lowest NumPy.
LOWEST = $(addprefix tests/test_, $(addsuffix .py, internals matmul capture compress quantize scores exact ekfac store tasks lm_records \
  record record_lightning cli))

.PHONY: help demo page test test-all test-browser test-lowest fuzz check bench docs site clean
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

# Where there is no GPU, PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu saves downloading CUDA.
test-lowest: .venv-lowest/ready  ## some of the tests with the lowest versions that pyproject.toml allows
	OMP_NUM_THREADS=1 .venv-lowest/bin/python -m pytest -m "not slow and not browser" $(LOWEST)

check: .venv-test/ready  ## format, lint, types, import ladder
	.venv-test/bin/ruff format --check .
	.venv-test/bin/ruff check .
	.venv-test/bin/basedpyright --pythonpath .venv-test/bin/python
	.venv-test/bin/lint-imports

torture: .venv-test/ready  ## a thousand kills at random moments, and as many damaged or hostile folders; fifteen minutes
	OMP_NUM_THREADS=1 .venv-test/bin/python -m tests.torture
	OMP_NUM_THREADS=1 .venv-test/bin/python -m tests.hostile

bench: .venv-test/ready  ## print the tables of docs/results.md; about an hour the first time, for the banks
	.venv-test/bin/python benchmarks/build_speed.py
	.venv-test/bin/python benchmarks/query_speed.py
	.venv-test/bin/python benchmarks/install_size.py
	.venv-test/bin/python benchmarks/serve_load.py
	.venv-test/bin/python benchmarks/ekfac_speed.py
	.venv-test/bin/whence bench -o whence-bench
	.venv-test/bin/python benchmarks/bench_tables.py whence-bench

site: .venv-site/ready  ## the documentation as a site that needs no server: site/index.html
	NO_MKDOCS_2_WARNING=1 .venv-site/bin/mkdocs build --quiet
	@echo "open site/index.html"

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

.venv-site/ready: constraints.txt
	$(PYTHON) -m venv .venv-site
	.venv-site/bin/python $(PIP) mkdocs-material
	@touch $@

.venv-lowest/ready: pyproject.toml tests/lowest.py
	$(PYTHON) -m venv .venv-lowest
	$(PYTHON) tests/lowest.py > .venv-lowest/constraints.txt
	@echo "installing (torch is the large one) ..."
	PIP_CONSTRAINT=$(CURDIR)/.venv-lowest/constraints.txt .venv-lowest/bin/python $(PIP) \
	  --editable '.[trainer,lightning,lora,images,bench]' pytest hypothesis scipy
	@touch $@

clean:           ## remove environments and caches; keeps whence-demo
	rm -rf .venv .venv-test .venv-lowest .venv-site site .pytest_cache .ruff_cache .hypothesis .import_linter_cache build dist
