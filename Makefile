# Start with `make read`; then `make test`. Each makes the environment it needs in .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READ := $(VENV)/.read
DEV := $(VENV)/.dev
unexport PYTHONDONTWRITEBYTECODE # every process of the tests would compile torch and transformers again
PROMPT := The Eiffel Tower is in the city of

.PHONY: read test check ci docs sweep bench bench-kernels lock demo-model demo-lenses study clean

## read: read the Eiffel prompt with the bundled model and print the grid
read: $(READ)
	@$(BIN)/logitlens read "$(PROMPT)" --track " Paris"

## test: the quick tests
test: $(DEV)
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not slow and not hub"

## check: everything CI checks, on the working tree
check: $(DEV)
	bash .ci/check.sh

## ci: the same on a clean clone of the last commit
ci:
	.ci/run

## sweep: read every causal LM class of transformers; writes docs/architectures.md
sweep: $(DEV)
	$(BIN)/python -m tests.architectures.sweep

## bench: speed and memory beside the alternatives, each in its own environment (.bench/); writes the
##        rows and the tables made of them. ARGS="--threads 1", ARGS="--only small", …
bench: $(DEV)
	$(BIN)/python benchmarks/run.py $(ARGS)

## bench-kernels: the readout's kernels alone, under pytest-benchmark
bench-kernels: $(DEV)
	$(BIN)/python -m pytest benchmarks/test_kernels.py --benchmark-columns=min,median,iqr,rounds \
		--benchmark-group-by=param:given,param:positions $(ARGS)

## docs: write the generated parts of the documentation
docs: $(DEV)
	$(BIN)/python docs/generate.py

## demo-model: train the bundled model again from its recipe (hours)
demo-model: $(DEV)
	$(BIN)/python recipes/demo_model/make.py

## demo-lenses: fit the bundled lenses again (a quarter of an hour)
demo-lenses: $(DEV)
	$(BIN)/python recipes/demo_lenses/make.py

## study: survey the bundled model's facts again and write docs/study.md (a few minutes)
study: $(DEV)
	$(BIN)/python recipes/study/make.py

## lock: resolve every lock file again: requirements/*.lock and benchmarks/environments/*.txt
lock: $(READ)
	$(BIN)/python requirements/lock.py

clean:
	rm -rf $(VENV) .bench build dist

# uv takes a third of pip's time. It does not read pip's settings, so the folder of wheels that pip is
# set to look in, if any, is passed on. Where uv is missing or cannot reach an index, pip installs.
# On Linux without a GPU, `UV_TORCH_BACKEND=cpu make read` saves gigabytes of CUDA packages.
INSTALL = install() { UV_FIND_LINKS="$${PIP_FIND_LINKS-$$($(BIN)/pip config get global.find-links 2>/dev/null)}" \
	$(BIN)/uv pip install -q --python $(BIN)/python "$$@" || $(PIP) "$$@"; }; install
PIP = $(BIN)/pip install -qq --disable-pip-version-check --no-compile

$(READ): requirements/read.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "logitlens needs Python 3.11 or newer; $(PYTHON) is older. Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "Installing what reading needs into $(VENV) (about a minute, once)"
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@$(PIP) "$$(grep '^uv==' requirements/dev.lock)" || true
	@$(INSTALL) -r requirements/read.lock -e .
	@touch $@

$(DEV): requirements/dev.lock $(READ)
	@echo "Installing what tests and tools need into $(VENV) (another minute, once)"
	@$(INSTALL) -r requirements/dev.lock
	@touch $@
