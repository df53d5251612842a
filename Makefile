PYTHON ?= python3
VENV ?= .venv
# Further requirements, versions for example: PINS="torch==2.9.1 torchvision==0.24.1"
PINS ?=
BIN := $(VENV)/bin
# Tests against the packages of the extra "parity", which skip themselves without these.
PARITY := tests/test_transformers_checkpoints.py $(addprefix tests/models/test_parity_,\
  efficient_sam.py efficientvit_sam.py repvit.py sam2_transformers.py sam_hq.py)

.PHONY: install lint test bench demo docs notebooks

# The environment, rebuilt when pyproject.toml changes.
$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[test]' $(PINS)
	touch $@

install: $(VENV)/installed

# The extra "parity" without what it requires, which the environment has: a folder for a process of its own.
$(VENV)/parity: pyproject.toml $(VENV)/installed
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $@ $$($(BIN)/python -c "import tomllib; \
	  print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['parity'])")
	touch $@

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

test: lint $(VENV)/parity
	$(BIN)/python -m pytest
	$(BIN)/python -m pytest -m slow
	PYTHONPATH=$(abspath $(VENV))/parity$${PYTHONPATH:+:$$PYTHONPATH} $(BIN)/python -m pytest -m 'slow or not slow' $(PARITY)

bench: install
	$(BIN)/python benchmarks/average_recall.py
	$(BIN)/python benchmarks/ap_intervals.py
	$(BIN)/python benchmarks/annotation_files.py
	$(BIN)/python benchmarks/distillation.py
	$(BIN)/python benchmarks/loading.py
	$(BIN)/python benchmarks/lvis_scale.py --images 2000
	$(BIN)/python benchmarks/mask_decoder.py
	$(BIN)/python benchmarks/segevery.py
	$(BIN)/python benchmarks/segevery_sam2.py --points-per-side 16
	$(BIN)/python benchmarks/encoder.py
	$(BIN)/python benchmarks/prompt_head.py
	$(BIN)/python benchmarks/fastsam_masks.py
	$(BIN)/python benchmarks/exported.py
	$(BIN)/python benchmarks/help.py

# The documentation and the API as one site, in outputs/docs/index.html; broken links stop it.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

# The notebooks, run again, with what they print.
notebooks: install
	$(BIN)/python notebooks/execute.py

# The papers in miniature, on synthetic scenes; a demo that was stopped resumes, and rm -r outputs/demo starts over.
demo: install
	$(BIN)/mobilesamv2 demo
