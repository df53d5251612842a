"""Time of prompts: the detector that ships, which runs a network of its own on the image, and the prompt head.

    OMP_NUM_THREADS=1 python benchmarks/prompt_head.py --write       # half a minute; the figures of docs/train.md
    python benchmarks/prompt_head.py --image image.jpg --device cuda

The head reads the embedding that the mask decoder needs anyway: the image encoder's time, a row of its own, is spent in
any case. CPU time is of the process, over all threads.
"""

from __future__ import annotations

import argparse
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accuracy_texts import TRAIN
from figures import Figure, Figures, read_evaluations, write_evaluations
from result_pages import RESULTS, write_pages
from segevery_official import now

from mobilesamv2.data.images import read_rgb
from mobilesamv2.data.synthetic.render import render_scene
from mobilesamv2.model_zoo import find_weights
from mobilesamv2.models.object_detector import build_detector
from mobilesamv2.pretrained import load_pretrained
from mobilesamv2.prompt_heads import build_prompt_head, prompt_head_file
from mobilesamv2.reports.stated import LINE_WIDTH
from mobilesamv2.segany import SegAny

MODEL = "mini_conv"
PROMPT_HEAD = RESULTS / "prompt_head.csv"
PAGES = (TRAIN,)
ENCODER, DETECTOR, HEAD = "image encoder", "detector, YOLOv8n", "prompt head"


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
    """Print a table, and write it where that is asked for."""
    parser = argparse.ArgumentParser(description="Prompts of a detector and of a prompt head.")
    parser.add_argument("--image", type=Path, help="default: a synthetic scene")
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--write", action="store_true", help="write the results and the documentation's text")
    args = parser.parse_args()
    if args.write and (args.device != "cpu" or args.image):
        parser.error("--write wants --device cpu and the synthetic scene")
    device = torch.device(args.device)
    image = read_rgb(args.image, upright="always") if args.image else render_scene(0, (256, 256))[0]
    sam = load_pretrained(MODEL)
    head = build_prompt_head(sam, find_weights(prompt_head_file(MODEL))).fuse_().to(device)
    segany = SegAny(sam.for_inference().to(device))
    detector = build_detector(checkpoint=find_weights("mini_detector.pt"), image_size=384).fuse_().to(device)
    settings = {"confidence": 0.0001, "nms_iou": 0.75, "max_boxes": args.prompts, "snap": 0}
    embedding = segany.encode([image])
    rows: dict[str, Callable[[], Any]] = {
        ENCODER: lambda: segany.encode([image]),
        DETECTOR: lambda: detector.detect(image, **settings),
        HEAD: lambda: head.detect_in_embedding(embedding, image.shape[:2], **settings),
    }
    print(
        f"{MODEL}, {args.device}, {torch.get_num_threads()} threads, torch {torch.__version__}, best of {args.repeats}"
    )
    print(f"{'':20s}{'wall, ms':>12s}{'CPU, ms':>12s}{'boxes':>8s}")
    figures = {"settings": {"threads": Figure(torch.get_num_threads()), "prompts": Figure(args.prompts)}}
    for name, work in rows.items():
        wall, cpu, result = fastest(work, device, args.repeats)
        boxes = len(result[0]) if isinstance(result, tuple) else ""
        print(f"{name:20s}{wall:12.2f}{cpu:12.2f}{boxes:>8}")
        figures[name] = {"wall_ms": Figure(wall), "cpu_ms": Figure(cpu)}
    if args.write:
        write_evaluations(PROMPT_HEAD, figures)
        write_pages(PAGES, stated())


def stated() -> dict[str, str]:
    """Return the documentation's texts by their names, of the file of results."""
    return {"prompt_head_time": text(read_evaluations(PROMPT_HEAD))}


def text(figures: Figures) -> str:
    """Return the sentence of docs/train.md."""
    encoder, detector, head = (figures[name]["cpu_ms"].value for name in (ENCODER, DETECTOR, HEAD))
    prompts, threads = (round(figures["settings"][name].value) for name in ("prompts", "threads"))
    return textwrap.fill(
        f"The head's prompts take {head:.0f} ms of CPU time a scene, the detector's {detector:.0f} "
        f"({prompts} prompts, {threads} thread{'s' if threads > 1 else ''}); the image encoder takes {encoder:.0f} ms "
        "in either case.",
        LINE_WIDTH,
    )


if __name__ == "__main__":
    main()
