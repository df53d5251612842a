PYTHON ?= python3
VENV ?= .venv
# Further requirements, versions for example: PINS="torch==2.9.1 torchvision==0.24.1"
PINS ?=
BIN := $(VENV)/bin

.PHONY: install lint test bench demo docs notebooks

# The environment, made anew when pyproject.toml changes.
$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[test]' $(PINS)
	touch $@

install: $(VENV)/installed

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

test: lint
	$(BIN)/python -m pytest
	$(BIN)/python -m pytest -n 0 -m slow

bench: install
	$(BIN)/python benchmarks/average_recall.py
	$(BIN)/python benchmarks/distillation.py
	$(BIN)/python benchmarks/mask_decoder.py
	$(BIN)/python benchmarks/segevery.py
	$(BIN)/python benchmarks/encoder.py

# The docstrings as pages of HTML.
docs: install
	$(BIN)/python docs/render.py outputs/docs

# The notebooks, run anew, with what they print.
notebooks: install
	$(BIN)/python notebooks/execute.py

# The papers in miniature, on drawn scenes: a student and a detector are trained, and teacher and student are measured on
# scenes of shapes and textures that no training saw. Two jobs run at a time, a thread each; a run that was stopped goes on,
# and rm -r outputs/demo starts anew.
DEMO := outputs/demo
TEACHER := mobilesamv2/weights/mini_conv.safetensors
STUDENT := $(DEMO)/student/micro_conv.safetensors
DETECTOR := $(DEMO)/detector/detector.pt
TEST := $(DEMO)/test/annotations.json
GRIDS := $(foreach points,64 32 16,teacher-grid_proposals-$(points) teacher-grid-$(points))
BOXES := teacher-object_aware student-object_aware

demo: install
	@$(MAKE) --no-print-directory --jobs 2 $(GRIDS:%=$(DEMO)/runs/%/results.json) $(BOXES:%=$(DEMO)/runs/%/results.json)
	$(BIN)/mobilesamv2 report claims $(DEMO)/runs --teacher mini_conv --student micro_conv

# A job by its name and its command, with its output in a file of its own.
define job
@mkdir -p $(DEMO)/logs
@echo "$$(date +%T) $1, see $(DEMO)/logs/$1.log"
@OMP_NUM_THREADS=1 $2 >$(DEMO)/logs/$1.log 2>&1 || { tail -n 20 $(DEMO)/logs/$1.log; exit 1; }
endef

$(DEMO)/train.tar:
	$(call job,draw-train,$(BIN)/mobilesamv2 draw $@ --scenes 2064 --seed 1)

$(TEST):
	$(call job,draw-test,$(BIN)/mobilesamv2 draw $(@D) --scenes 16 --seed 2 --world test --workers 1)

TRAIN := $(BIN)/python train.py dataset=sa1b dataset.tars=$(DEMO)/train.tar num_workers=0

$(STUDENT): $(DEMO)/train.tar
	$(call job,distil,$(TRAIN) experiment=distill_micro_conv_shapes teacher.checkpoint=$(TEACHER) \
	  trainer.max_epochs=5 output_dir=$(@D))

$(DETECTOR): $(DEMO)/train.tar
	$(call job,train-detector,$(TRAIN) experiment=detect_yolov8n_shapes trainer.max_epochs=2 output_dir=$(@D))

EVALUATE := $(BIN)/python evaluate.py dataset=lvis dataset.annotations=$(TEST) dataset.images=$(DEMO)/test/images \
  num_workers=0 save_masks=true
teacher := model=mini_conv model.checkpoint=$(TEACHER)
student := model=micro_conv model.checkpoint=$(STUDENT)
# SAM's own filters would leave none of the masks of a model as small as this.
grid := prompt_sampler.predicted_iou=0.25 prompt_sampler.stability=0.6
part = $(word $1,$(subst -, ,$*))

# The training comes first, so that what is timed runs beside the like.
$(GRIDS:%=$(DEMO)/runs/%/results.json): $(DEMO)/runs/%/results.json: $(TEST) | $(DETECTOR) $(STUDENT)
	$(call job,$*,$(EVALUATE) $($(call part,1)) prompt_sampler=$(call part,2) prompt_sampler.points_per_side=$(call part,3) \
	  $($(call part,2)) output_dir=$(@D))

# The confidence is one that leaves about a hundred boxes in scenes to train on: see calibration.csv beside the detector.
$(BOXES:%=$(DEMO)/runs/%/results.json): $(DEMO)/runs/%/results.json: $(DETECTOR) $(STUDENT) $(TEST)
	$(call job,$*,$(EVALUATE) $($(call part,1)) prompt_sampler=object_aware prompt_sampler.confidence=0.05 detector=yolov8n \
	  detector.checkpoint=$(DETECTOR) detector.image_size=256 output_dir=$(@D))
