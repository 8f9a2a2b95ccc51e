# The Diffusion Book. `make` alone lists what there is; every target sets up what it needs. What they do stands in
# diffusion_book/book.py, which machines without make call by itself: python -m diffusion_book.book TARGET

PYTHON ?= python3
RUN = $(PYTHON) -m diffusion_book.book

# VENV=.venv, BUILD=_build, NOTEBOOKS=notebooks, JOBS=2, PORT=8888, BOOK_URL and AS_IS=1 (install nothing) reach it as
# variables.
export

TARGETS := help setup book lab test site epub pdf notebooks execute lint format pairs pictures constraints clean

.PHONY: $(TARGETS)
$(TARGETS): python
	@$(RUN) $@

# One executed chapter: make _build/chapters/02_ddim.ipynb
_build/chapters/%.ipynb: python FORCE
	@$(RUN) execute $*

.PHONY: python FORCE
python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11")'
FORCE:
