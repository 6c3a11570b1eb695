# `make demo` and `make test` do all the set-up: they need Python 3.11 or newer and nothing else.
PYTHON ?= python3
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2]) if sys.version_info >= (3, 11) else None' 2>/dev/null)
ifeq ($(filter 3.%,$(VERSION)),)
$(error '$(PYTHON)' is not Python 3.11 or newer; name one that is: make $(MAKECMDGOALS) PYTHON=python3.13)
endif
VENV := .venv/py$(VERSION)
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# The official SDK is large, and only its tests, one example and two benchmarks need it.
LARK := $(VENV)-lark
LARK_READY := $(LARK)/.ready
BENCHMARKS := limit mixed_day cost scale crowd

.PHONY: demo test soak bench lint format readme clean

demo: $(READY)
	$(BIN)/feishu-mail-async demo

test: $(READY) $(LARK_READY)
	$(BIN)/python -m pytest -n 4 -m "not soak"

# The same examples every time; `make soak SOAK_RANDOM=1` looks for new ones.
soak: export SOAK_RANDOM ?=
soak: $(READY) $(LARK_READY)
	$(BIN)/python -m pytest -n 2 -m soak

# Some minutes in all, one after another; what they measure goes to benchmarks/ and into both READMEs.
bench: $(READY) $(LARK_READY)
	@for name in $(BENCHMARKS); do echo; $(BIN)/python benchmarks/$$name.py || exit; done
	$(BIN)/python tools/readme.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The table of codes and what was measured, in both READMEs.
readme: $(READY)
	$(BIN)/python tools/readme.py

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --group dev --editable ".[cli,fleet,otel]"
	touch $@

$(LARK_READY): pyproject.toml
	$(PYTHON) -m venv $(LARK)
	$(LARK)/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	$(LARK)/bin/python -m pip install --quiet --group lark --editable .
	touch $@

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis dist
