# `make serve` and `make test` set everything up themselves, once, and are quick from then on.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
KERNELS := $(VENV)/.kernels

# Python keeps what it compiles, even where the environment forbids it: the tests start a hundred processes.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help serve sanitize test test-kernels test-page test-clients test-deploy test-versions fuzz soak bench bench-peers hostile lint format setup models translator clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

serve: models  ## install, fetch the default models, serve them on 127.0.0.1:8000 (ARGS="--port 9000")
	@exec $(BIN)/sluice serve --config deploy/defaults.toml $(ARGS)

test: models translator  ## install, fetch the default models and the translators, run all tests on all CPUs (ARGS="-k name" for some)
	@$(BIN)/python -m pytest -n auto --dist worksteal $(ARGS)

test-kernels: models translator  ## repeat the tests of kernels and parity with each set of CPU kernels that runs here (SETS="avx2 torch")
	@for set in $${SETS:-$$($(BIN)/python -c \
	  'from tests.native import variants; print(*(name[1:] for name in variants.HERE), "torch")')}; do \
	  echo "With the kernels $$set:"; \
	  SLUICE_KERNELS=$$set $(BIN)/python -m pytest tests/native tests/parity tests/encoder tests/engine/test_engine_parity.py \
	    tests/engine/test_runner_parity.py tests/engine/test_fused*.py tests/engine/test_chained.py $(ARGS) || exit 1; \
	done

test-deploy: setup  ## build and run the image, the proxies, and the rest of deploy/ (installs what that needs)
	@tests/deploy/install.sh
	@TEST_HAPROXY=required $(BIN)/python -m pytest -m '' tests/deploy $(ARGS)

test-page: models  ## try the page in a headless Chromium (installs one); pictures go to tests/page/shots/
	@tests/page/install.sh
	@$(BIN)/python -m pytest -m browser tests/page $(ARGS)

test-clients: models  ## run the clients that people have against a real server (installs each in its own environment)
	@$(BIN)/python -m pytest -m clients tests/clients $(ARGS)

test-versions: setup  ## test engines and models with the oldest and newest torch and transformers (ENDS=oldest, SUITES=tests/models)
	@PYTHON=$(PYTHON) SUITES="$(SUITES)" tests/versions/run.sh $(or $(ENDS),all) $(ARGS)

sanitize: setup  ## run the CPU kernels' tests with AddressSanitizer and UBSan (ARGS="-k name")
	@$(BIN)/python tests/native/sanitize.py $(ARGS)

fuzz: setup  ## ten times the random tries of `make test`: the documented API, broken HTTP, the engine (ARGS="-k name")
	@FUZZ_SCALE=10 $(BIN)/python -m pytest $$(grep -rl --include='test_*.py' fuzz.scale tests) --timeout 3600 $(ARGS)

soak: models  ## ten minutes of mixed load with clients that leave and workers that are killed (ARGS="--minutes 1440")
	@$(BIN)/python loadtest/soak.py $(ARGS) -- --config deploy/defaults.toml

bench: models  ## measure speed against the machine and transformers (ARGS="--only streams", "--quick")
	@$(BIN)/python loadtest/bench.py $(ARGS)

bench-peers: models  ## the same beside OpenVINO GenAI, onnxruntime and CTranslate2 (installs them in environments of their own)
	@$(BIN)/python loadtest/bench.py --only peers peer-encoders translation $(ARGS)

hostile: models  ## attack a server and judge what its other clients notice (ARGS="--seconds 60", "--quick")
	@$(BIN)/python loadtest/hostile.py $(ARGS)

lint: setup  ## check format, lint, types and import contracts
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: setup  ## put the code into its format
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

models: setup  ## fetch and convert the default models into models/
	@$(BIN)/python -m server.defaults

translator: setup  ## fetch and convert the translators between English and Portuguese into models/
	@$(BIN)/python -m server.defaults --translators

setup: $(KERNELS)  ## the virtual environment with everything in it

# The stamp is a copy of the pyproject.toml that was installed, so that a checkout that only touches it costs nothing.
$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed and \
	this is %d.%d. Name another one: make PYTHON=python3.12 ..." % sys.version_info[:2])'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { echo "Creating $(VENV)"; $(PYTHON) -m venv --clear $(VENV); }
	@cmp -s pyproject.toml $@ || { \
	  echo "Installing into $(VENV): a few minutes the first time"; \
	  [ -t 1 ] || quiet=--quiet; \
	  $(BIN)/python -m pip install $$quiet --disable-pip-version-check --no-input --editable '.[dev]' && \
	  cp pyproject.toml $@; }
	@touch $@

# The first installation built them already; a changed source builds them again. Without a compiler there are none, and
# never old ones: they would read the arguments of new code.
$(KERNELS): $(INSTALLED) $(wildcard server/native/src/*)
	@[ ! -e $@ ] || [ -z "$(filter server/native/src/%,$?)" ] || { \
	  echo "Building the CPU kernels"; \
	  rm -f server/native/_*.so; \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .; \
	  ls server/native/_*.so >/dev/null 2>&1 || echo "They cannot be built here, and torch's operations do the work." \
	    "To see why: $(BIN)/python -m pip install --verbose --no-deps --no-build-isolation --editable ."; }
	@touch $@

clean:  ## remove the virtual environment and caches; the models stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
