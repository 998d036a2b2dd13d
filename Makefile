# Everything runs in .venv, made on first use from whatever python3 there is (or PYTHON=...).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
WORKERS ?= 2

# The oldest transformers we support, in a second environment.
OLD := .venv-4.57

# Trainers that others build (sentence-transformers, TRL, PEFT, Lightning), in a third.
TRAINERS := .venv-trainers

# Other packages whose optimizers have names here (bitsandbytes, DeepSpeed, torchao, FlashOptim), in a fourth.
PROVIDERS := .venv-providers

.PHONY: demo test test-every test-all test-4.57 test-triton test-trainers test-providers coverage lint bench clean

demo: $(READY)
	$(BIN)/hfoptim compare --output-dir demo $(if $(wildcard demo/results.json),--resume)

test: $(READY)
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile -m "not slow"

test-every: $(READY) $(VENV)/sources/.ready
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile

test-all:
	$(MAKE) test-every
	$(MAKE) test-4.57
	$(MAKE) test-triton
	$(MAKE) test-trainers
	$(MAKE) test-providers

test-4.57: $(OLD)/.ready
	$(OLD)/bin/python -m pytest -q -n $(WORKERS) --dist loadfile tests/trainer tests/test_examples.py

test-trainers: $(TRAINERS)/.ready
	HFOPTIM_ALL_TRAINERS=1 $(TRAINERS)/bin/python -m pytest -q -n $(WORKERS) --dist loadfile tests/integrations

test-providers: $(PROVIDERS)/.ready
	HFOPTIM_ALL_PROVIDERS=1 PATH=$(CURDIR)/$(PROVIDERS)/bin:$$PATH $(PROVIDERS)/bin/python -m pytest -q -n $(WORKERS) --dist loadfile tests/providers

# The generated Triton kernels with an older Triton, that of torch 2.11, in a folder of its own.
test-triton: $(VENV)/triton-3.6/.ready
	PYTHONPATH=$(VENV)/triton-3.6 $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile tests/kernels/test_device_code.py tests/kernels/test_triton.py

# make test, and how much of the code it runs, in processes that tests start too. FILES=tests/kernels measures a part.
coverage: $(READY)
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile -m "not slow" --cov --cov-report=xml --cov-report=html --cov-report=term $(FILES)

lint: $(READY)
	$(BIN)/python -m hfoptim.registry.stubs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Every figure of docs/performance.md, on a quiet machine; about an hour.
bench: $(READY)
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(VENV)/bench --requirement benchmarks/peers.txt
	$(BIN)/python benchmarks/step_time.py --output benchmarks/results/step_time.json
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/floors.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/quality.py
	$(BIN)/python benchmarks/scaling.py
	$(BIN)/python benchmarks/imports.py
	$(BIN)/python benchmarks/report.py

# torch first: with it there, the other packages do not bring its CUDA build.
$(READY): pyproject.toml constraints.txt tests/peers.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(VENV)/peers --requirement tests/peers.txt
	touch $(READY)

# timm's own tests lie in its source distribution.
$(VENV)/sources/.ready: $(READY) tests/peers.txt
	$(BIN)/python -m pip download --quiet --no-deps --no-binary timm --dest $(VENV)/sources $$(grep ^timm== tests/peers.txt)
	touch $@

$(VENV)/triton-3.6/.ready: $(READY)
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(VENV)/triton-3.6 triton==3.6.0
	touch $@

$(OLD)/.ready: pyproject.toml constraints-4.57.txt
	test -x $(OLD)/bin/python || $(PYTHON) -m venv $(OLD)
	$(OLD)/bin/python -m pip install --quiet --constraint constraints-4.57.txt torch
	$(OLD)/bin/python -m pip install --quiet --constraint constraints-4.57.txt --editable ".[test-trainer]"
	touch $@

$(TRAINERS)/.ready: pyproject.toml constraints-trainers.txt
	test -x $(TRAINERS)/bin/python || $(PYTHON) -m venv $(TRAINERS)
	$(TRAINERS)/bin/python -m pip install --quiet --constraint constraints-trainers.txt torch
	$(TRAINERS)/bin/python -m pip install --quiet --constraint constraints-trainers.txt --editable ".[test-trainers]"
	touch $@

# DeepSpeed's setup imports torch, and compiles nothing until an optimizer is made.
$(PROVIDERS)/.ready: pyproject.toml constraints-providers.txt
	test -x $(PROVIDERS)/bin/python || $(PYTHON) -m venv $(PROVIDERS)
	$(PROVIDERS)/bin/python -m pip install --quiet --constraint constraints-providers.txt torch setuptools wheel ninja
	DS_BUILD_OPS=0 $(PROVIDERS)/bin/python -m pip install --quiet --constraint constraints-providers.txt --no-build-isolation deepspeed
	$(PROVIDERS)/bin/python -m pip install --quiet --constraint constraints-providers.txt --editable ".[test-providers]"
	touch $@

clean:
	rm -rf $(VENV) $(OLD) $(TRAINERS) $(PROVIDERS) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .coverage .coverage.* coverage.xml htmlcov
