# Every target works from a bare clone; `make help` lists them.
# COMFYUI_DIR=<folder> uses your own ComfyUI instead of the managed one, PYTHON=<program> makes the environment.

PYTHON ?= python3
BIN := .venv/bin
PYTEST_ARGS ?=
# Files go to the workers in the order they are collected: the browser tests have to come last in each.
WORKERS ?= 2
PARALLEL := -n $(WORKERS) --dist loadfile --no-loadscope-reorder
METHODS := leffa deadiff refine
LOCK_WITHOUT := api assets-01 image other video
export COMFYUI_DIR

.DEFAULT_GOAL := help
.PHONY: help setup browser demo test mends soak train-check train-fullsize fuzz beside lint bench gpu-check world-train claims serve lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' Makefile

setup: ## make .venv and the managed ComfyUI, link the pack into it
	@$(PYTHON) dev/setup_env.py

demo: setup ## run the workflows on a headless ComfyUI, pictures go to out/demo
	@$(BIN)/python demo/runs/demo.py

browser: setup ## find or install a Chromium for the browser tests
	@$(BIN)/python dev/setup_browser.py

test: setup browser ## run all tests; a test that was skipped fails the run
	@mkdir -p out
	OMP_NUM_THREADS=1 $(BIN)/pytest $(PARALLEL) --junitxml=out/pytest.xml $(PYTEST_ARGS)
	@$(BIN)/python dev/check_skips.py out/pytest.xml

mends: setup ## take back each mend for graphics cards in turn: does a test fail? About three minutes
	@OMP_NUM_THREADS=1 $(BIN)/python tests/mends.py $(MENDS)

soak: setup ## 200 workflows of all methods through one server, some of them cancelled
	REFATTENTION_SOAK_RUNS=200 $(BIN)/pytest -s tests/e2e/test_soak.py

train-check: setup ## each training overfits on eight small pictures and its node paints them: about twenty minutes
	REFATTENTION_TRAIN_CHECK=1 $(BIN)/pytest -s tests/training/test_overfit.py

train-fullsize: setup ## one step of each training on a full-size SD1.5 with random weights: needs 20 GiB, writes bench/results
	$(BIN)/python bench/run.py --only $(METHODS:%=train_fullsize.%)

fuzz: setup ## loaders on 2000 wrong files, nodes on random values, RefDrop against its oracle on 1000 random cases
	REFATTENTION_FUZZ_FILES=2000 REFATTENTION_FUZZ_PROMPTS=1000 REFATTENTION_FUZZ=1000 \
		$(BIN)/pytest -s tests/fuzz tests/e2e/test_random_widgets.py tests/refdrop/test_fuzz.py

beside: setup ## the pack beside others: make beside PACKS="FOLDER ..."
	REFATTENTION_BESIDE="$(PACKS)" $(BIN)/pytest tests/e2e/test_beside_packs.py

lint: setup ## ruff (rules and format) and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@$(BIN)/python dev/check_types.py

bench: setup ## measure speed, results go to bench/results
	$(BIN)/python bench/run.py

gpu-check: setup ## on a graphics card, in ten minutes: is it right, how long, how much memory
	$(BIN)/python bench/gpu_check.py $(GPU_CHECK_ARGS)

world-train: setup ## train the demo world's models in the background of the machine; goes on where it was stopped
	@cd dev && nice -n 19 ../$(BIN)/python -m world.train

claims: setup ## measure what the papers claim on the trained world into docs/CLAIMS.md; CLAIMS_ARGS="--only refdrop" keeps other rows
	@cd dev && OMP_NUM_THREADS=1 ../$(BIN)/python -m claims $(CLAIMS_ARGS)

serve: setup ## start ComfyUI with the pack and the demo models for a look in the browser
	@$(BIN)/python dev/serve.py

lock: setup ## resolve requirements/dev.in into requirements/lock.txt
	cd requirements && UV_CUSTOM_COMPILE_COMMAND="make lock" ../$(BIN)/uv pip compile dev.in -o lock.txt \
		--universal --python-version 3.10 --no-emit-index-url --no-emit-find-links --generate-hashes --quiet \
		$(LOCK_WITHOUT:%=--no-emit-package comfyui-workflow-templates-media-%)

clean: ## remove .venv, .host, out and all caches
	rm -rf .venv .host out .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
