# Everything runs in .venv, which the first target that needs it creates.
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
DEMO := runs/demo
export HF_HUB_OFFLINE := 1

.PHONY: help environment demo test lint bench swatch

help:
	@echo "make demo         environment, then: learn a woven composite from a 3D volume, and look at it"
	@echo "make test         environment, then the test suite"
	@echo "make environment  Python packages in .venv"
	@echo "make lint         ruff and mypy"
	@echo "make bench        speed and memory, as ratios"
	@echo "make swatch       train the embedded base model again (hours)"

# Every file is compared with its hash. torch is fetched first, as pip would choose its build; what another build needs
# beyond the pinned packages (CUDA libraries) comes with the last step.
.venv/installed: pyproject.toml requirements.txt requirements-torch.txt
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip download --quiet --no-deps --dest .venv/torch \
	    "$$(sed -n 's/^\(torch==[^ ]*\).*/\1/p' requirements-torch.txt)"
	$(BIN)/python -m pip install --quiet --require-hashes --no-deps --no-index --find-links .venv/torch \
	    --requirement requirements-torch.txt
	$(BIN)/python -m pip install --quiet --require-hashes --no-deps --requirement requirements.txt
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable ".[dev]"
	rm -r .venv/torch
	touch $@

environment: .venv/installed

demo: .venv/installed
	$(BIN)/accelerate launch --config_file accelerate_configs/cpu.yaml finetune/lora.py --concept sf_dry \
	    --max_train_steps 500 --output_dir $(DEMO) --overwrite_output_dir
	$(BIN)/python pipelines/compare.py --adapter $(DEMO) --num_images 64

test: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses logical --maxprocesses 8 --dist loadfile

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/installed
	$(BIN)/python benchmarks/sampling.py

swatch: .venv/installed
	bash pipelines/swatch/train.sh
