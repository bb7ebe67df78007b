# `make demo` and `make test` do all set-up themselves; they need Python 3.11+ and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint types check parity slow clean

demo: $(VENV)/.demo
	$(BIN)/smalti demo $(ARGS)

test: lint types check parity

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

check: $(VENV)/.dev
	$(BIN)/pytest tests --ignore tests/parity -n 2 --durations 10

parity: $(VENV)/.dev
	$(BIN)/pytest tests/parity -n 2

# What takes minutes each: kills, gigabytes, large tables.
slow: $(VENV)/.dev
	$(BIN)/pytest tests -m slow -n 2 --durations 20

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache

# Each stamp says that the environment holds what pyproject.toml asks for.
$(VENV)/.demo: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -e ".[audio,demo]"
	# The wheel carries a speech clip; its own dependencies are not needed. Without it the demo uses a synthetic one.
	-$(BIN)/pip install --quiet --no-deps useful-moonshine-onnx
	touch $@

$(VENV)/.dev: pyproject.toml $(VENV)/.demo
	$(BIN)/pip install --quiet -e ".[audio,demo,text,dev]"
	touch $@
