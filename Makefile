# Two commands set everything up: `make demo` runs the main job, `make test` passes the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint unit bench schemas wheel clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[torch,parquet,adapters,optimizers,dev]'
	touch $@

demo: $(STAMP)
	$(BIN)/python examples/sentiment/fetch.py
	$(BIN)/edgepipe devices setup rpi4
	rm -rf examples/sentiment/build examples/sentiment/build-host
	cd examples/sentiment && PATH="$(abspath $(BIN)):$$PATH" && \
	  edgepipe compress --profile rpi4 && \
	  edgepipe compress --profile host --out build-host

test: $(STAMP) lint
	tests/system.sh
	$(BIN)/python examples/sentiment/fetch.py
	$(BIN)/python examples/ocr/fetch.py
	$(BIN)/python examples/voice_activity/fetch.py
	$(BIN)/edgepipe devices setup rpi4 browser-wasm
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m pytest -n 2

unit: $(STAMP)
	$(BIN)/python -m pytest -n 2 --ignore=tests/e2e

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)
	for example in sentiment ocr voice_activity similarity fashion; do $(BIN)/python examples/$$example/fetch.py || exit 1; done
	for example in ocr voice_activity similarity; do $(BIN)/python examples/$$example/make_data.py || exit 1; done
	for network in residual depthwise wide; do $(BIN)/python examples/fashion/train.py $$network || exit 1; done
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python benchmarks/run.py

schemas: $(STAMP)
	$(BIN)/python schemas/make.py

wheel: $(STAMP)
	$(BIN)/python -m build --wheel

clean:
	rm -rf $(VENV) dist examples/sentiment/build examples/sentiment/build-host
