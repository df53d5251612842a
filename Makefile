PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: install lint test demo bench docs

# The environment, made anew when pyproject.toml changes.
$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

install: $(VENV)/installed

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

test: lint
	$(BIN)/python -m pytest -m "slow or not slow"

bench: install
	$(BIN)/python benchmarks/average_recall.py
	$(BIN)/python benchmarks/distillation.py
	$(BIN)/python benchmarks/mask_decoder.py
	$(BIN)/python benchmarks/segevery.py
	$(BIN)/python benchmarks/encoder.py

# The docstrings as pages of HTML.
docs: install
	$(BIN)/python docs/render.py outputs/docs

# The whole chain on drawn scenes with small models: teacher, student, detector, and what they find.
DEMO := outputs/demo
MODELS := teacher:mini_conv student:micro_conv
SCENES := dataset=sa1b dataset.tars=$(DEMO)/train.tar num_workers=1
HELD_OUT := dataset=lvis dataset.annotations=$(DEMO)/val/annotations.json dataset.images=$(DEMO)/val/images
GRID := prompt_sampler.points_per_side=16
BOXES := prompt_sampler=object_aware prompt_sampler.confidence=0.05 \
  detector=yolov8n detector.checkpoint=$(DEMO)/detector/detector.pt detector.image_size=256
EVALUATE := $(BIN)/python evaluate.py $(HELD_OUT) save_masks=true
RUNS := $(foreach m,teacher student,$(foreach s,grid boxes,"$m, $s=$(DEMO)/$m-$s"))

demo: install
	rm -rf $(DEMO)
	$(BIN)/mobilesamv2 draw $(DEMO)/train.tar --scenes 1264 --seed 1
	$(BIN)/mobilesamv2 draw $(DEMO)/val --scenes 40 --seed 2
	mkdir -p $(DEMO)/teacher && cp mobilesamv2/weights/mini_conv.safetensors $(DEMO)/teacher
	$(BIN)/python train.py experiment=distill_micro_conv_shapes $(SCENES) trainer.max_epochs=2 \
	  teacher.checkpoint=$(DEMO)/teacher/mini_conv.safetensors output_dir=$(DEMO)/student
	$(BIN)/python train.py experiment=detect_yolov8n_shapes $(SCENES) dataset.limit=1264 trainer.max_epochs=2 \
	  output_dir=$(DEMO)/detector
	for pair in $(MODELS); do \
	  name=$${pair%:*} model=$${pair#*:}; \
	  weights="model=$$model model.checkpoint=$(DEMO)/$$name/$$model.safetensors"; \
	  $(EVALUATE) $$weights $(GRID) output_dir=$(DEMO)/$$name-grid || exit 1; \
	  $(EVALUATE) $$weights $(BOXES) output_dir=$(DEMO)/$$name-boxes || exit 1; \
	done
	$(BIN)/mobilesamv2 report picture $(RUNS) -o $(DEMO)/picture.png
	$(BIN)/mobilesamv2 report table $(RUNS)
	@echo "Student and detector are barely trained, so recall is low: this shows that the chain works, not how well."
