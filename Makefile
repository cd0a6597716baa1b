# The two commands of a newcomer are `make read` and `make test`; both make the environment first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PROMPT := The Eiffel Tower is in the city of

.PHONY: read test check ci docs sweep bench bench-kernels bench-lock lock demo-model demo-lenses clean

## read: read the Eiffel prompt with the bundled model and show the grid
read: $(STAMP)
	@$(BIN)/logitlens read "$(PROMPT)" --track " Paris"

## test: the quick tests (under 3 minutes)
test: $(STAMP)
	$(BIN)/python -m pytest -q -m "not slow and not hub"

## check: everything CI checks, on this tree
check: $(STAMP)
	bash .ci/check.sh

## ci: the same on a clean clone of the last commit
ci:
	.ci/run

## sweep: every causal LM class of transformers; writes docs/architectures.md
sweep: $(STAMP)
	$(BIN)/python -m tests.architectures.sweep

## bench: speed and memory beside the alternatives, each in its own environment (.bench/); writes
##        rows and docs/performance.md. ARGS="--threads 1", ARGS="--only small", …
bench: $(STAMP)
	$(BIN)/python benchmarks/run.py $(ARGS)

## bench-kernels: the readout's kernels alone, under pytest-benchmark
bench-kernels: $(STAMP)
	$(BIN)/python -m pytest benchmarks/test_kernels.py --benchmark-columns=min,median,iqr,rounds \
		--benchmark-group-by=param:given,param:positions $(ARGS)

## bench-lock: resolve benchmarks/environments again
bench-lock: $(STAMP)
	$(BIN)/python -m benchmarks.readout.environments lock

## docs: write the generated parts of README and docs again
docs: $(STAMP)
	$(BIN)/python docs/generate.py

## demo-model: train the bundled model again from its recipe (hours)
demo-model: $(STAMP)
	$(BIN)/python recipes/demo_model/make.py

## demo-lenses: fit the bundled lenses again (a quarter of an hour)
demo-lenses: $(STAMP)
	$(BIN)/python recipes/demo_lenses/make.py

## lock: resolve requirements-dev.lock again
lock:
	.ci/lock.sh

clean:
	rm -rf $(VENV) .bench build dist

# torch comes first, exactly: an open range would let another package pull gigabytes of CUDA.
$(STAMP): requirements-dev.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "logitlens needs Python 3.11 or newer; $(PYTHON) is older. Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing the locked environment into $(VENV) (a few minutes, once)"
	@$(BIN)/python -m pip install --disable-pip-version-check -q "$$(grep '^torch==' requirements-dev.lock)"
	@$(BIN)/python -m pip install --disable-pip-version-check -q -r requirements-dev.lock
	@$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps --no-build-isolation -e .
	@touch $@
