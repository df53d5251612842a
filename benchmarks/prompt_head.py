"""Time of prompts: the detector that ships, which runs a network of its own on the image, and the prompt head.

    OMP_NUM_THREADS=1 python benchmarks/prompt_head.py
    python benchmarks/prompt_head.py --image image.jpg --device cuda

The head reads the embedding that the mask decoder needs anyway: the image encoder's time, a row of its own, is spent in
any case. CPU time is of the process, over all threads.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from segevery_official import now

from mobilesamv2.data.images import read_rgb
from mobilesamv2.data.synthetic.render import render_scene
from mobilesamv2.model_zoo import find_weights
from mobilesamv2.models.object_detector import build_detector
from mobilesamv2.pretrained import load_pretrained
from mobilesamv2.prompt_heads import build_prompt_head, prompt_head_file
from mobilesamv2.segany import SegAny

MODEL = "mini_conv"


def fastest(work: Callable[[], Any], device: torch.device, repeats: int) -> tuple[float, float, Any]:
    """Wall and CPU milliseconds of the fastest call after three to warm up, and what it returns."""
    times, result = [], None
    for _ in range(3 + repeats):
        wall, cpu = now(device), time.process_time()
        result = work()
        times.append((now(device) - wall, time.process_time() - cpu))
    walls, cpus = zip(*times[3:], strict=True)
    return 1000 * min(walls), 1000 * min(cpus), result


@torch.inference_mode()
def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description="Prompts of a detector and of a prompt head.")
    parser.add_argument("--image", type=Path, help="default: a synthetic scene")
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    device = torch.device(args.device)
    image = read_rgb(args.image, upright="always") if args.image else render_scene(0, (256, 256))[0]
    sam = load_pretrained(MODEL)
    head = build_prompt_head(sam, find_weights(prompt_head_file(MODEL))).fuse_().to(device)
    segany = SegAny(sam.for_inference().to(device))
    detector = build_detector(checkpoint=find_weights("mini_detector.pt"), image_size=384).fuse_().to(device)
    settings = {"confidence": 0.0001, "nms_iou": 0.75, "max_boxes": args.prompts, "snap": 0}
    embedding = segany.encode([image])
    rows: dict[str, Callable[[], Any]] = {
        "image encoder": lambda: segany.encode([image]),
        "detector, YOLOv8n": lambda: detector.detect(image, **settings),
        "prompt head": lambda: head.detect_in_embedding(embedding, image.shape[:2], **settings),
    }
    print(
        f"{MODEL}, {args.device}, {torch.get_num_threads()} threads, torch {torch.__version__}, best of {args.repeats}"
    )
    print(f"{'':20s}{'wall, ms':>12s}{'CPU, ms':>12s}{'boxes':>8s}")
    for name, work in rows.items():
        wall, cpu, result = fastest(work, device, args.repeats)
        boxes = len(result[0]) if isinstance(result, tuple) else ""
        print(f"{name:20s}{wall:12.2f}{cpu:12.2f}{boxes:>8}")


if __name__ == "__main__":
    main()
