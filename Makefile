# The Diffusion Book. `make` alone lists what there is; every target sets up what it needs.

VENV ?= .venv
PYTHON ?= python3
BUILD := _build
PORT ?= 8888
# Chapters executed at a time, and the threads of each: two of one thread are faster than one of two.
JOBS ?= 2
THREADS = $(shell cores=$$(getconf _NPROCESSORS_ONLN); echo $$((cores > $(JOBS) ? cores / $(JOBS) : 1)))

# Threads wait without spinning, so that a busy neighbour does not slow them down manyfold: see docs/threads.md. The
# package sets it too, but a chapter may load torch before the package.
export GOMP_SPINCOUNT ?= 1000

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

BIN := $(VENV)/bin
READY := $(VENV)/.ready
CHAPTERS := $(patsubst notebooks/%.py,%,$(sort $(wildcard notebooks/[0-9][0-9]_*.py)))
EXECUTED := $(CHAPTERS:%=$(BUILD)/chapters/%.ipynb)
LIBRARY := $(shell find diffusion_book -name '*.py' -o -name '*.js' -o -name '*.safetensors' -o -name '*.json')
PAGES := $(wildcard docs/*.md docs/*.png docs/*.svg docs/*.webp docs/_static/*)

.PHONY: help
help: ## list the targets
	@echo "The Diffusion Book"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1@\2/p' Makefile | while IFS=@ read -r name text; do printf '%-18s %s\n' "$$name" "$$text"; done

.PHONY: setup
setup: $(READY) ## create .venv with everything in it (done by the other targets too)

# Done again only when the requirements change. uv where it is there, else venv and pip.
$(READY): pyproject.toml constraints.txt
	@if ! $(BIN)/python -c '' 2>/dev/null; then \
	  echo "Creating $(VENV) ..."; \
	  if command -v uv >/dev/null; then uv venv --quiet --clear --python '>=3.11' $(VENV); \
	  else \
	    $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11")'; \
	    $(PYTHON) -m venv --clear $(VENV); \
	  fi; \
	fi
	@echo "Installing what the book needs into $(VENV) (about 6 GB, most of it PyTorch) ..."
	@if command -v uv >/dev/null; then \
	  uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[book,dev]'; \
	else \
	  $(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt --editable '.[book,dev]'; \
	fi
	@touch $@

.PHONY: book
book: $(READY) ## execute every chapter from the shipped weights and build the site
	@OMP_NUM_THREADS=$(THREADS) $(MAKE) --silent --no-print-directory -j $(JOBS) $(EXECUTED)
	@$(MAKE) --silent --no-print-directory site NOTEBOOKS=$(BUILD)/chapters

# One executed chapter. The committed copy lends its cell ids, so that executing it again changes only outputs.
# In two commands: --update beside --execute would throw the new outputs away and keep the old ones.
# No network is needed: the chapters use the weights that the package ships.
$(BUILD)/chapters/%.ipynb: notebooks/%.py $(LIBRARY) | $(READY)
	@echo "Executing $< ..."
	@mkdir -p $(@D)
	@if [ -e notebooks/$*.ipynb ]; then cp notebooks/$*.ipynb $@; fi
	@start=$$SECONDS; \
	$(BIN)/jupytext --quiet --update --to ipynb --output $@ $<; \
	$(BIN)/jupytext --quiet --execute --run-path notebooks $@ 2> >(grep -v IPKernelApp >&2); \
	echo "Executed $< in $$((SECONDS - start)) s"

# The site of the notebooks in the folder NOTEBOOKS: by default the committed ones, as they are.
.PHONY: site
site: NOTEBOOKS ?= notebooks
site: $(READY)
	@rm -rf $(BUILD)/source
	@mkdir -p $(BUILD)/source/notebooks
	@cp -R docs/. $(BUILD)/source/
	@cp $(NOTEBOOKS)/[0-9][0-9]_*.ipynb $(BUILD)/source/notebooks/
	@$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going --fresh-env -c . --doctree-dir $(BUILD)/doctrees $(BUILD)/source $(BUILD)/html
	@for chapter in $(CHAPTERS); do \
	  test -s $(BUILD)/html/notebooks/$$chapter.html || { echo "error: the site has no page for the chapter $$chapter" >&2; exit 1; }; \
	done
	@echo "$(abspath $(BUILD)/html/index.html)"

.PHONY: notebooks
notebooks: $(READY) ## execute the chapters and write them back into notebooks/ (to commit)
	@OMP_NUM_THREADS=$(THREADS) $(MAKE) --silent --no-print-directory -j $(JOBS) $(EXECUTED)
	@for chapter in $(CHAPTERS); do cp $(BUILD)/chapters/$$chapter.ipynb notebooks/; done

.PHONY: test
test: lint ## check the style, run the tests and every chapter
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile \
	  --nbval-lax --nbval-current-env --nbval-cell-timeout 300 tests notebooks

.PHONY: lint
lint: $(READY) ## check the style of the code and of the notebooks
	@$(BIN)/ruff format --check --quiet . || { echo "error: some files are not formatted: make format" >&2; exit 1; }
	@$(BIN)/ruff check --quiet .

.PHONY: format
format: $(READY) ## format the code and the notebooks
	@$(BIN)/ruff check --quiet --fix-only .
	@$(BIN)/ruff format --quiet .
	@for chapter in $(CHAPTERS); do $(BIN)/jupytext --quiet --update --to ipynb notebooks/$$chapter.py; done

.PHONY: lab
lab: $(READY) ## open the chapters in JupyterLab (PORT=8888)
	@$(BIN)/jupyter lab --port $(PORT) --LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb \
	  $$(if [ "$$(id -u)" = 0 ]; then echo --allow-root --no-browser; fi)

.PHONY: pictures
pictures: $(READY) ## draw the README's picture, the logo and the social card again from the shipped weights
	@$(BIN)/python docs/pictures.py

.PHONY: constraints
constraints: ## choose the newest versions that fit together and pin them (needs uv)
	@{ echo "# The versions that the book was tested with; written by \`make constraints\`."; \
	  echo "# The libraries of an accelerator are left out: PyTorch brings its own."; \
	  uv pip compile --quiet --universal --python-version 3.11 --upgrade --no-header --no-annotate \
	    --extra book --extra dev pyproject.toml | grep -v -E '^(nvidia|cuda|triton)'; } > constraints.new
	@mv constraints.new constraints.txt

.PHONY: clean
clean: ## remove the built book
	@rm -rf $(BUILD)
