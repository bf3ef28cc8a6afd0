# make run    set up, then MMSRARec from raw interactions to the table of ranks on the toyshop
# make test   set up, then the tests; ends with the ten slowest
# make parity the tests that compare live with Hugging Face transformers on CPU torch
# make beam   the tests that need Apache Beam or TensorFlow, in a virtual environment of their own
# make processes  the tests that run all steps in 2 and 4 real processes
# make robustness  hostile cases: damaged files, nonsense settings, whole command lines too;
#                  FUZZ_SECONDS=600 damages the files of each reader for ten minutes
# make mutation    plants faults and counts those that the tests see, FLAGS=--only=rl added
# make real-llava MODEL=DIR  a real LLaVA's text, features and logits beside transformers'
# make real-tokenizer TOKENIZER=DIR DATA=DIR  ids of 200 items beside Qwen processors'
# make bench-model        speed and memory of the model beside transformers on torch, FLAGS=... added
# make bench-loss-memory  memory of the token loss as the batch grows
# make bench-accelerator  correctness and speed on a GPU, FLAGS=--tiny on a CPU; into runs/accelerator
# make results  numbers of README and docs that need a CPU and torch alone, but for those of the
#               rows "by itself", by the commands of docs/results.md
# make lint   ruff, and the types by mypy
PYTHON ?= python3
WORKDIR ?= runs/quickstart
MODEL ?= models/tiny-llava
FLAGS ?=
FUZZ_SECONDS ?= 10
TESTS ?= not parity and not processes and not robustness
VENV := .venv
BIN := $(VENV)/bin
# Files in the order of tests/conftest.py: xdist's own puts those with few tests, which are long, last.
IN_TWO := -n 2 --dist loadfile --no-loadscope-reorder
export HF_HUB_OFFLINE ?= 1
# Large pages for what the CPU backend allocates anew in every step: docs/performance.md.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.PHONY: run test results parity beam processes robustness mutation real-llava real-tokenizer bench-model bench-loss-memory bench-accelerator lint clean

run: $(VENV)/.installed
	$(BIN)/python launch/train.py --config=configs/quickstart.py --workdir=$(WORKDIR)

results: $(VENV)/.installed-torch
	PATH="$(CURDIR)/$(BIN):$$PATH" sh -e -x -c "$$(sed -n '/^## On a CPU/,$$ s/^    //p' docs/results.md)"

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m "$(TESTS)" --durations=10 $(IN_TWO)

# Compiled as users' programs are: other tests set a flag (tests/xla_flags.py). Only their files are
# collected: the imports of all others take longer than some of these tests.
parity: $(VENV)/.installed-torch
	XLA_FLAGS=--xla_force_host_platform_device_count=8 \
		$(BIN)/python -m pytest -m parity $(IN_TWO) $$(grep -rlF mark.parity tests --include=*.py)

# Of its own: Beam asks for older packages than others bring.
beam: $(VENV)-beam/.installed
	$(VENV)-beam/bin/python -c 'import apache_beam, tensorflow' && $(VENV)-beam/bin/python -m pytest tests/data/test_partitioned.py tests/data/test_published_builders.py

processes: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m processes

robustness: $(VENV)/.installed-dev
	FUZZ_SECONDS=$(FUZZ_SECONDS) $(BIN)/python -m pytest tests/robustness $(IN_TWO)

mutation: $(VENV)/.installed-dev
	$(BIN)/python -c 'import cosmic_ray' 2>/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check cosmic-ray==8.7.0
	$(BIN)/python benchmarks/mutation.py --out=runs/mutation.json $(FLAGS)

real-llava: $(VENV)/.installed-torch
	$(BIN)/python benchmarks/real_llava.py --model=$(MODEL)

real-tokenizer: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/real_tokenizer.py --tokenizer=$(TOKENIZER) --data=$(DATA)

bench-model: $(VENV)/.installed-torch
	$(BIN)/python benchmarks/model.py $(FLAGS)

bench-loss-memory: $(VENV)/.installed
	$(BIN)/python benchmarks/loss_memory.py $(FLAGS)

bench-accelerator: $(VENV)/.installed-torch
	$(BIN)/python benchmarks/accelerator/measure.py --out=runs/accelerator $(FLAGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(VENV)-beam runs

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python requirements.txt pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

$(VENV)-beam/.installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)-beam
	$(VENV)-beam/bin/python -m pip install --quiet --disable-pip-version-check -e ".[beam,gcs]" tensorflow pytest
	touch $@

# The CPU build of torch exists under this version for Python 3.11; elsewhere use any installed one.
$(VENV)/.installed-torch: $(VENV)/.installed-dev
	$(BIN)/python -c 'import torch' 2>/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "peft>=0.21"
	touch $@
