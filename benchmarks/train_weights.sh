#!/usr/bin/env bash
# Train on one GPU the two networks that ship, mini_conv.safetensors and mini_detector.pt, side by side.
#
#   bash benchmarks/train_weights.sh FOLDER SAM_SCENES DETECTOR_SCENES SECONDS
#
# The scenes are rendered while they are trained on; the number of CPU cores limits the speed. After SECONDS what is still
# training is stopped, and the averages of the newest checkpoints are written.
set -u
folder=$1 sam_scenes=$2 detector_scenes=$3 seconds=$4
common="dataset=synthetic ema=0.998 checkpoint_minutes=1 +trainer.enable_progress_bar=false"
cores=$(nproc)
sam_workers=$(((cores * 5 + 4) / 8)) detector_workers=$(((cores + 2) / 4))
export OMP_NUM_THREADS=1

timeout --foreground -s TERM -k 30 "$seconds" python3 train.py experiment=pretrain_mini $common seed=3 dataset.seed=3 \
  model.checkpoint=mobilesamv2/weights/mini_conv.safetensors dataset.limit="$sam_scenes" num_workers=$sam_workers \
  batch_size=64 trainer.accumulate_grad_batches=1 optimizer.lr=1.2e-3 task.warmup_images=6400 \
  validation_images=128 +trainer.val_check_interval=0.125 \
  ${SAM_OPTIONS:-} output_dir="$folder/sam" >"$folder/sam.log" 2>&1 &
timeout --foreground -s TERM -k 30 "$seconds" python3 train.py experiment=detect_yolov8n_synthetic $common seed=4 dataset.seed=4 \
  detector.checkpoint=mobilesamv2/weights/mini_detector.pt dataset.limit="$detector_scenes" \
  num_workers=$detector_workers batch_size=64 optimizer.lr=2e-3 task.warmup_images=6400 \
  validation_images=128 +trainer.val_check_interval=0.125 \
  ${DETECTOR_OPTIONS:-} output_dir="$folder/detector" >"$folder/detector.log" 2>&1 &
wait

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
    state = checkpoint["state_dict"]
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


written = folder / "sam" / "mini_conv.safetensors", folder / "detector" / "detector.pt"
sam = build_sam("mini_conv", checkpoint=written[0] if written[0].is_file() else None)
if not written[0].is_file():
    sam.load_state_dict(newest("sam", "sam."))
save_weights(sam, folder / "mini_conv.safetensors", dtype=torch.float16)
detector = build_detector("yolov8n", checkpoint=written[1] if written[1].is_file() else None)
if not written[1].is_file():
    detector.load_state_dict(newest("detector", "detector."))
save_detector(detector, folder / "mini_detector.pt", half=True)
PYTHON
cp "$folder/sam/metrics.csv" "$folder/sam_metrics.csv"
cp "$folder/detector/metrics.csv" "$folder/detector_metrics.csv"
tail -n 4 "$folder"/sam.log "$folder"/detector.log
