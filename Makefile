# Two commands do everything: `make demo` and `make test`. Both work on a fresh machine with
# Python 3.11 or later and make. Without a GPU on Linux, ask for the small CPU build of PyTorch:
#   make demo PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"

PYTHON ?= python3
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt
# Two workers, each single-threaded: threads of several processes waiting for each other on the same
# cores are many times slower than one.
TEST_ARGS ?= -n 2 --dist loadfile

.PHONY: demo test test-slow test-trains lint bench study docs browser pacs clean help

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "installing normalis into $(VENV)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "normalis needs Python 3.11 or later")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) -e '.[codecs]'
	@touch $@

$(VENV)/.tested: $(VENV)/.installed
	@echo "installing what the tests need into $(VENV)"
	@$(PIP) -e '.[codecs,notebook,onnx,pacs,ray,research,serve,test,dev]'
	@touch $@

demo: $(VENV)/.installed ## install, train on generated images, score and show where to look
	@$(BIN)/normalis demo --out demo

PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(TEST_ARGS)

test: $(VENV)/.tested ## install and run the tests, but for the slow ones
	$(PYTEST) -m "not slow"
	@echo "tests: tests/ (one file per module); a line 's' above names what was skipped and why"

test-slow: $(VENV)/.tested ## run the slow tests
	$(PYTEST) -m slow

test-trains: $(VENV)/.tested ## run the tests that train; NORMALIS_PRECISION=bfloat16 make test-trains
	$(PYTEST) -m "trains and not slow"

lint: $(VENV)/.tested ## what CI checks beside the tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.tested ## run the benchmarks that need no arguments; ratios measured in one run
	@for name in limits training scoring metrics sweep kill; do \
		echo "== $$name"; $(BIN)/python benchmarks/$$name.py || exit 1; done

study: $(VENV)/.tested ## rewrite docs/reference/selection_study.md and its pictures from the committed records (minutes)
	@for name in "selection_study.py --tables" selection_claims.py "readings.py --draw-only" \
		"seeds.py --draw-only" "many_seeds.py --draw-only"; do \
		echo "== $$name"; OMP_NUM_THREADS=1 $(BIN)/python studies/$$name || exit 1; done
	@echo "look at docs/reference/selection_study.md and docs/images/selection_*.png; git diff says what changed"

docs: $(VENV)/.tested ## write the generated pages and tables anew, and build the documentation as HTML
	@$(PIP) -e '.[docs]'
	@for name in docs/make_cli.py "docs/make_methods.py --text" docs/make_results.py \
		docs/make_panel.py docs/make_cited.py "scripts/house.py --write"; do \
		echo "== $$name"; OMP_NUM_THREADS=1 $(BIN)/python $$name || exit 1; done
	$(BIN)/sphinx-build -q -W --keep-going -b html docs docs/_build/html
	@echo "open docs/_build/html/index.html"

browser: ## install the headless browser that the report's tests drive (Debian, as root)
	@if test -x /usr/bin/chromium; then echo "chromium is there"; \
	elif command -v apt-get >/dev/null && test "$$(id -u)" = 0; then \
		apt-get -qq update && apt-get -qq install -y --no-install-recommends chromium >/dev/null; \
	else echo "no chromium: the report's browser tests will be skipped"; fi

pacs: ## install a PACS and checkers that the tests talk to (Debian, as root)
	@if test -x /usr/sbin/Orthanc && command -v dciodvfy storescu >/dev/null; then echo "Orthanc is there"; \
	elif command -v apt-get >/dev/null && test "$$(id -u)" = 0; then \
		apt-get -qq update && apt-get -qq install -y --no-install-recommends \
			orthanc orthanc-dicomweb orthanc-gdcm dcmtk dicom3tools >/dev/null; \
	else echo "no Orthanc: its tests talk to an embedded peer instead"; fi

clean: ## remove what the targets made, but not runs and results
	rm -rf $(VENV) build dist docs/_build
