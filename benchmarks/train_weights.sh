#!/usr/bin/env bash
# Train on one GPU the two networks that ship, mini_conv.safetensors and mini_detector.pt, side by side.
#
#   bash benchmarks/train_weights.sh FOLDER SAM_SCENES DETECTOR_SCENES SECONDS [START]
#
# It goes on from the weights in START, by default those that ship. The scenes are rendered while they are trained on, so
# that the number of CPU cores limits the speed; set the numbers of scenes to what they render in SECONDS. After that a run
# that is not done is stopped, and the averages of its newest checkpoint are written. Further settings of the two runs stand
# in SAM_OPTIONS and DETECTOR_OPTIONS.
#
# The weights that ship: one H100 with 16 cores, which render 240 scenes/s for the SAM and 140 for the detector,
#   TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1 SAM_OPTIONS=channels_last=false bash benchmarks/train_weights.sh FOLDER 132000 72000 560
# from those of commit 5a3f442 (SHA-256 8b584170... and 0b507a4e...).
set -euo pipefail
folder=$1 sam_scenes=$2 detector_scenes=$3 seconds=$4 start=${5:-mobilesamv2/weights}
[ -z "$(ls -A "$folder" 2>/dev/null)" ] || { echo "$folder must be empty." >&2; exit 2; }
mkdir -p "$folder"
common="dataset=synthetic ema=0.998 checkpoint_minutes=1 batch_size=64 task.warmup_images=6400 validation_images=128
  +trainer.val_check_interval=0.125 +trainer.enable_progress_bar=false"
cores=$(nproc)
export OMP_NUM_THREADS=1

train() { # stops in time; 143 is the status of a run that SIGTERM stopped and that saved
  timeout --foreground --preserve-status -s TERM -k 30 "$seconds" python3 train.py "$@" || [ $? = 143 ]
}
train experiment=pretrain_mini $common seed=3 dataset.seed=3 model.checkpoint="$start/mini_conv.safetensors" \
  dataset.limit="$sam_scenes" num_workers=$(((cores * 5 + 4) / 8)) trainer.accumulate_grad_batches=1 \
  optimizer.lr=1.2e-3 ${SAM_OPTIONS:-} output_dir="$folder/sam" >"$folder/sam.log" 2>&1 &
sam=$!
train experiment=detect_yolov8n_synthetic $common seed=4 dataset.seed=4 detector.checkpoint="$start/mini_detector.pt" \
  dataset.limit="$detector_scenes" num_workers=$(((cores + 2) / 4)) optimizer.lr=2e-3 \
  ${DETECTOR_OPTIONS:-} output_dir="$folder/detector" >"$folder/detector.log" 2>&1 &
detector=$!
wait $sam || { tail -n 3 "$folder/sam.log" >&2; exit 1; }
wait $detector || { tail -n 3 "$folder/detector.log" >&2; exit 1; }

python3 - "$folder" <<'PYTHON'
import sys
from pathlib import Path

import torch

from mobilesamv2 import build_sam
from mobilesamv2.checkpoints import save_weights
from mobilesamv2.models.object_detector import build_detector, save_detector

folder = Path(sys.argv[1])


def newest(name: str, prefix: str) -> dict[str, torch.Tensor]:
    """Return the weights of a run's newest checkpoint, which are the averages."""
    path = max((folder / name / "checkpoints").glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    print(name, path.name, "step", checkpoint["global_step"])
    return {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}


sam_file, detector_file = folder / "sam" / "mini_conv.safetensors", folder / "detector" / "detector.pt"
sam = build_sam("mini_conv", checkpoint=sam_file if sam_file.is_file() else None)
if not sam_file.is_file():
    sam.load_state_dict(newest("sam", "sam."))
save_weights(sam, folder / "mini_conv.safetensors", dtype=torch.float16)
detector = build_detector("yolov8n", detector_file if detector_file.is_file() else None, image_size=384)
if not detector_file.is_file():
    detector.load_state_dict(newest("detector", "detector."))
save_detector(detector, folder / "mini_detector.pt", half=True)
PYTHON
cp "$folder/sam/metrics.csv" "$folder/sam_metrics.csv"
cp "$folder/detector/metrics.csv" "$folder/detector_metrics.csv"
tail -n 1 "$folder/sam.log" "$folder/detector.log"
