# Three commands: `make demo`, `make test` and `make docs`. Each sets up .venv first, from the locked requirements.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
SITE := .venv-docs
NEWEST := .venv-newest
EIGHT := .venv-8bit
VIEW := .venv-view
UV := $(shell sed -n "s/^\(uv==[0-9.]*\).*/\1/p" requirements.lock)
export TOKENIZERS_PARALLELISM := false
export RAY_USAGE_STATS_ENABLED := 0
export HF_HUB_OFFLINE ?= 0

.PHONY: demo test test-all test-8bit test-view test-locks golden golden-speed chaos docs lint lint-newest format setup lock clean

demo: $(READY) ## synthetic videos -> motion tokenizer -> JALA checkpoint and report, through a Ray head of its own
	$(BIN)/python jobs/demo.py

test: $(READY) ## everything but the slow tests
	$(BIN)/pytest -m "not slow" --numprocesses 2 --dist loadscope --no-loadscope-reorder

test-all: $(READY)
	$(BIN)/pytest

test-8bit: $(READY) ## those of `optim.states 8bit`, with torchao laid beside the environment; `make test` skips them
	test -d $(EIGHT) || $(BIN)/uv pip install --quiet --python $(BIN)/python --target $(EIGHT) --no-deps \
		"$$(sed -n 's/^8bit = \["\([^"]*\)".*/\1/p' pyproject.toml)"
	PYTHONPATH=$(EIGHT) $(BIN)/pytest tests/training/test_states.py

test-view: $(READY) ## those of `jala view`, with rerun laid beside the environment; `make test` skips them
	test -d $(VIEW) || $(BIN)/uv pip install --quiet --python $(BIN)/python --target $(VIEW) --no-deps \
		"$$(sed -n 's/^view = \["\([^"]*\)".*/\1/p' pyproject.toml)"
	PYTHONPATH=$(VIEW) $(BIN)/pytest tests/reports/test_view.py

golden: $(READY) ## twenty steps of six runs here and in the commit of tests/golden/BASE, equal bit for bit (docs/golden.md)
	$(BIN)/python -m tests.golden $(if $(BASE),--base $(BASE))

golden-speed: $(READY) ## the data engine here beside that commit's; it takes ten minutes, and a quiet machine
	$(BIN)/python -m tests.golden.speed $(if $(BASE),--base $(BASE))

chaos: $(READY) ## faults, outages and kills at length (an hour or more); scores are added to docs/results/chaos.json
	$(BIN)/python -m tests.faults

docs: $(READY) ## all pages and an API reference as a site in runs/site; its tools have an environment of their own
	test -x $(SITE)/bin/mkdocs || ($(BIN)/uv venv --quiet --clear $(SITE) --python $(BIN)/python \
		&& $(BIN)/uv pip install --quiet --python $(SITE)/bin/python --group docs)
	NO_MKDOCS_2_WARNING=1 $(SITE)/bin/mkdocs build --strict --quiet
	@echo runs/site/index.html

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright

lint-newest: $(READY) ## types once more, with the newest PyAV that pyproject.toml allows: it needs Python 3.12, so the lock has an older one
	rm -rf $(NEWEST)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --target $(NEWEST) --python-version 3.12 --only-binary :all: --no-deps \
		"$$(sed -n 's/^ *"\(av[<>=][^"]*\)".*/\1/p' pyproject.toml)"
	$(BIN)/pyright --project .ci/newest.json

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

setup: $(READY)

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if v in ((3, 11), (3, 12)) else "Python 3.11 or 3.12 is needed, this is %d.%d: make PYTHON=python3.12" % v)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(UV)
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	$(BIN)/pyright --version
	touch $(READY)

LOCK = $(BIN)/uv pip compile --quiet pyproject.toml --universal --python-version 3.11 --fork-strategy fewest \
	--generate-hashes --no-emit-index-url --no-annotate --custom-compile-command "make lock"
# What nothing loads on a CPU. The rest of CUDA's libraries torch's own wheel needs to be imported at all.
GPU_ONLY := triton nvidia-cusolver nvidia-cuda-cccl nvidia-nvtx cuda-bindings cuda-pathfinder cuda-toolkit

lock: ## write requirements.lock anew from pyproject.toml, one version of a package for both Pythons; and of it the sets of the images
	$(LOCK) --extra dev -o requirements.lock
	$(LOCK) --constraint requirements.lock -o requirements-gpu.lock
	$(LOCK) --constraint requirements.lock $(addprefix --no-emit-package ,$(GPU_ONLY)) -o requirements-cpu.lock

test-locks: $(READY) ## the images' requirement sets in fresh environments; it needs a network or uv's cache, and minutes
	$(BIN)/python -m tests.infra.locks

clean:
	rm -rf .venv $(SITE) $(NEWEST) $(EIGHT) $(VIEW) # runs/ holds results and stays
