# The verbs of this project: the same for people and for continuous integration. `make help` lists them.

VENV ?= .venv
# Interpreter that has the package and its `test` extra; `make dev` makes it.
PY ?= $(VENV)/bin/python
BASE_PYTHON ?= python3
# What `make parity` draws: 14 times 36 folders of llama are 504.
FAMILY ?= llama
EXAMPLES ?= 14
SEED ?= 1
CLIPPY = cargo clippy --locked --all-targets

.DEFAULT_GOAL := help
.PHONY: help dev fmt lint test test-rust test-python parity golden notebook bench docs cubins wheel check

help: ## list the verbs
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

dev: ## build the extension into .venv, with everything the tests need (editable)
	test -x $(PY) || $(BASE_PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install -e '.[test]'

fmt: ## format Rust and Python in place
	cargo fmt --all
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

lint: ## formatting, clippy, ruff, mypy --strict and the stub against the module; warnings are errors
	cargo fmt --all --check
	$(CLIPPY) -- -D warnings
	$(CLIPPY) --features python -- -D warnings
	$(CLIPPY) --features python,cuda -- -D warnings
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(PY) -m mypy.stubtest fastdecode._core

test: test-rust test-python ## every test

test-rust: ## the engine without Python, and the import rules
	cargo test --locked --features cuda

test-python: ## the package, its parity with transformers, the goldens and the documentation's examples
	$(PY) -m pytest

parity: ## hundreds of random folders of a family against transformers: make parity FAMILY=llama EXAMPLES=14 SEED=1
	FASTDECODE_EXAMPLES=$(EXAMPLES) $(PY) -m pytest tests/python/test_parity.py -k '$(FAMILY) and not long' --hypothesis-seed=$(SEED)

golden: ## make the golden files again (needs the `test` extra)
	$(PY) tools/make_golden.py
	$(PY) tools/make_rng_golden.py
	$(PY) tools/make_decode_golden.py

notebook: ## make examples/lesson.ipynb from examples/lesson.py
	$(PY) tools/make_notebook.py

bench: ## kernels, then end to end against the peers that are installed (benches/README.md)
	cargo bench --locked
	$(PY) benches/decode.py

docs: ## the Rust documentation; its warnings are errors
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --features cuda --document-private-items

cubins: ## compile the CUDA kernels for every shipped architecture, into the package; needs no GPU
	$(PY) -m pip install --quiet nvidia-cuda-nvrtc-cu12==12.9.86
	$(PY) tools/build_cubins.py python/fastdecode/_cuda/cubins

wheel: cubins ## one abi3 wheel for CPython 3.11 and later, in dist/, against the old glibc that pyproject.toml names (zig links it)
	$(PY) -m pip install --quiet 'maturin[zig]>=1.16,<2'
	PATH="$(dir $(abspath $(PY))):$$PATH" $(PY) -m maturin build --release --locked --zig --out dist

# pytest comes last: its summary is the last line.
check: lint docs test ## everything that a change must pass
