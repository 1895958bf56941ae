# A fresh machine needs `make demo` and `make test`; everything else follows from them.
# UV_FIND_LINKS follows PIP_FIND_LINKS, so that a local CPU build of torch is found by uv as by pip.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ifdef PIP_FIND_LINKS
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
endif
# without a local build, uv picks the torch that fits the machine's GPU, or the CPU one
TORCH_BACKEND := $(if $(UV_FIND_LINKS),,--torch-backend=auto)
# compiled once here: where the environment forbids Python to keep bytecode, each process would compile thousands of files
INSTALL := $(BIN)/uv pip install -q --compile-bytecode --python $(BIN)/python -c constraints.txt --overrides overrides.txt \
    $(TORCH_BACKEND)
UNPINNED = $(BIN)/uv pip install -q --compile-bytecode --python $(BIN)/python $(TORCH_BACKEND)
unexport PYTHONDONTWRITEBYTECODE
# on one line and without syntax that an old Python does not have, so that it is the version that is reported
CHECK_PYTHON := import sys; v = sys.version_info[:2]; v >= (3, 11) or sys.exit("Python %d.%d is too old; \
    fix: make PYTHON=python3.11 (3.11, 3.12 and 3.13 are tested), after rm -rf $(VENV)" % v)
EXTRAS ?= train,playground,dev,docs
TESTS ?= tests
PYTHONS ?= python3.11 python3.12 python3.13
# whole files side by side, in the order of tests/conftest.py; three for two cores, because tests often wait for processes;
# JOBS=0 is one process, for a debugger
JOBS ?= 3
PYTEST = $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

# what this package needs of MLflow, Transformers, PEFT, TRL and Gradio: rows, bases, training, checkpoints, logged models, the engine
CONTRACT ?= tests/internals tests/adaptations tests/base_models tests/data/tokens tests/training tests/logged_models \
    tests/serving/transformers_engine tests/gradio_app/web/test_gradio_internals.py tests/methods tests/test_whole_path.py
CONTRACT_TOOLS := 'pytest>=8' 'pytest-timeout>=2.3' 'pytest-xdist>=3.6' 'jsonschema>=4.23' 'openai>=1.50' 'playwright>=1.55'
RESOLUTION_newest := highest
RESOLUTION_oldest := lowest-direct

.PHONY: setup setup-serve-cpu demo playground test test-pythons test-newest test-oldest test-all test-failed test-attacks lint docs clean

setup: $(VENV)/.ready
$(VENV)/.ready: pyproject.toml setup.cfg constraints.txt overrides.txt
	@$$(test -x $(BIN)/python && echo $(BIN)/python || echo $(PYTHON)) -c '$(CHECK_PYTHON)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q uv
	$(INSTALL) -e '.[$(EXTRAS)]'
	touch $@

setup-serve-cpu: setup
	$(INSTALL) -e '.[$(EXTRAS),serve-cpu]'

demo: setup
	$(BIN)/python recipes/quickstart/demo.py

# PLAYGROUND holds more of its arguments: make playground PLAYGROUND='--port 7870'
playground: setup
	$(BIN)/python recipes/quickstart/playground.py $(PLAYGROUND)

# at most five minutes on two cores: all that starts no process, trains nothing and fills no MLflow store, and the whole path
test: setup
	$(PYTEST) --durations=10 -m 'not (process or train or store or simulation or browser or vllm or gpu or ray or slurm)' $(TESTS)

# `make test` with each Python that the package supports, in an environment for each
test-pythons:
	for python in $(PYTHONS); do $(MAKE) test PYTHON=$$python VENV=.venv-$$python || exit 1; done

# the contract tests with the newest and with the oldest versions that pyproject.toml allows, each in an environment for it that
# is resolved again at each call, without constraints.txt
test-newest test-oldest: test-%:
	@$(PYTHON) -c '$(CHECK_PYTHON)'
	test -x .venv-$*/bin/python || $(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install -q uv
	$(MAKE) contract-tests VENV=.venv-$* RESOLUTION=$(RESOLUTION_$*)

.PHONY: contract-tests
contract-tests:
	$(UNPINNED) --upgrade --resolution $(RESOLUTION) -e '.[train,playground]'
	$(UNPINNED) $(CONTRACT_TOOLS)
	$(BIN)/mlflow-finetune doctor || true  # it names the versions, for tested_versions.txt
	$(PYTEST) -m 'not (vllm or gpu)' $(CONTRACT)

# everything; EXTRAS=train,playground,dev,serve-cpu and a Chromium add the tests with a real vLLM and a real browser
test-all: setup
	$(PYTEST) --durations=30 $(TESTS)

# The tests that failed in the last run, once more and one after the other; it fails at the first that fails again. What passes here
# failed while others competed for the cores: its name is printed, and it is a fault to look for, in the test or in the code.
test-failed: setup
	$(BIN)/python -m pytest --last-failed --last-failed-no-failures none --maxfail 1 -rps $(TESTS)

# the suite of attacks alone: docs/faults.md lists what each one must leave behind
test-attacks: setup
	$(PYTEST) --durations=10 -m 'bad_input or fault' $(TESTS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/generate.py --check

# writes the generated pages, and builds the site in site/
docs: setup
	$(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf $(VENV) .venv-newest .venv-oldest build dist site *.egg-info .demo
