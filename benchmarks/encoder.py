"""Time of image encoders: as built, prepared for inference, in bfloat16, and SAM's own code for its ViTs.

    OMP_NUM_THREADS=1 python benchmarks/encoder.py           # wants segment-anything-py for the ViTs; three minutes
    OMP_NUM_THREADS=1 python benchmarks/encoder.py --write   # the documentation's figures; a minute
    python benchmarks/encoder.py --models sam_vit_h --device cuda --compile

Same random weights and input; on a CPU processor time is counted, of all threads. MobileSAM's own TinyViT is timed by
``segevery.py``, which gives it a process of its own.
"""

from __future__ import annotations

import argparse
import time

import torch
from result_pages import RESULTS, ROOT, paragraph, read_csv, write_csv, write_pages
from segevery_official import now
from torch import Tensor, nn

from mobilesamv2 import build_sam
from mobilesamv2.models.sam import Sam

ENCODERS = RESULTS / "encoder.csv"
PAGES = [ROOT / "docs" / "evaluate.md"]
STATED = {"mobile_sam": "TinyViT", "repvit": "RepViT", "micro_conv": "a small MobileNetV4"}
"""Models whose encoders have batch norms to fold, and what the documentation calls these."""


def seconds_now(device: torch.device) -> float:
    """Return the processor seconds of this process, or those of the clock once a GPU has finished."""
    return time.process_time() if device.type == "cpu" else now(device)


def fastest(encoder: nn.Module, images: Tensor, repeats: int, dtype: torch.dtype | None = None) -> tuple[float, Tensor]:
    """Seconds of the fastest pass after one to warm up, in another precision if one is given, and what it gives."""
    seconds, output = [], images
    with torch.autocast(images.device.type, dtype=dtype, enabled=dtype is not None):
        for _ in range(1 + repeats):
            start = seconds_now(images.device)
            output = encoder(images)
            seconds.append(seconds_now(images.device) - start)
    return min(seconds[1:]), output


def official_vit(sam: Sam) -> nn.Module | None:
    """SAM's own image encoder with the weights of ours; None for other encoders."""
    if not (sam.name or "").startswith("sam_vit_") or sam.image_size != 1024:
        return None
    from segment_anything import sam_model_registry

    official = sam_model_registry[(sam.name or "").removeprefix("sam_")]().image_encoder.eval()
    ours = sam.image_encoder.state_dict()
    names = {name.removeprefix("backbone."): value for name, value in ours.items()}
    renamed = {name.replace("mlp.fc1", "mlp.lin1").replace("mlp.fc2", "mlp.lin2"): v for name, v in names.items()}
    official.load_state_dict(renamed)
    return official


@torch.inference_mode()
def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["mobile_sam", "repvit", "efficientvit_l0", "sam_vit_b"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="torch.compile what is prepared for inference")
    write_help = f"measure {', '.join(STATED)}, and write results/encoder.csv and its text of the docs; of the CPU"
    parser.add_argument("--write", action="store_true", help=write_help)
    args = parser.parse_args()
    if args.write and (args.device != "cpu" or args.compile):
        parser.error("--write wants --device cpu and no --compile: the documentation states a CPU's ratios.")
    if args.write:
        torch.set_num_threads(1)
    device, rows = torch.device(args.device), []
    print(f"one image, {args.device}, {torch.get_num_threads()} threads, torch {torch.__version__}; ms")
    columns = ("SAM's code", "as built", "inference", "ratio", "difference", "bfloat16", "difference")
    print(f"{'':18s}" + "".join(f"{name:>12s}" for name in columns))
    for name in STATED if args.write else args.models:
        torch.manual_seed(0)
        sam = build_sam(name).to(device)
        images = torch.randn(1, 3, sam.image_size, sam.image_size, device=device)
        official = official_vit(sam)
        theirs = None if official is None else fastest(official.to(device), images, args.repeats)[0]
        built, expected = fastest(sam.image_encoder, images, args.repeats)
        fast = sam.for_inference().image_encoder
        if args.compile:
            fast.compile()
        seconds, output = fastest(fast, images, args.repeats)
        half, rounded = fastest(fast, images, args.repeats, torch.bfloat16)
        scale = expected.abs().max()
        differences = [f"{(x.float() - expected).abs().max() / scale:.0e}" for x in (output, rounded)]
        first = "-" if theirs is None else f"{theirs * 1000:.0f}"
        cells = [first, f"{built * 1000:.0f}", f"{seconds * 1000:.0f}", f"{built / seconds:.2f}", differences[0]]
        cells += [f"{half * 1000:.0f}", differences[1]]
        print(f"{name:18s}" + "".join(f"{cell:>12s}" for cell in cells), flush=True)
        rows.append([name, f"{built * 1000:.1f}", f"{seconds * 1000:.1f}", differences[0]])
    if args.write:
        write_csv(ENCODERS, [["model", "as built, ms", "inference, ms", "difference"], *rows])
        write_pages(PAGES, stated())


def stated() -> dict[str, str]:
    """Return the documentation's texts by their names, of the file of results."""
    return texts(read_csv(ENCODERS))


def texts(rows: list[dict[str, str]]) -> dict[str, str]:
    """Return the documentation's text by its name, of the rows of the file of results."""
    ratios = [
        f"{STATED[row['model']]} {float(row['as built, ms']) / float(row['inference, ms']):.2f} times" for row in rows
    ]
    most = max(float(row["difference"]) for row in rows)
    return {
        "encoder": paragraph(
            f"By processor time of one thread, folding makes {', '.join(ratios[:-1])} and {ratios[-1]} as fast; the "
            f"outputs differ by at most {most:.0e} of the largest value."
        )
    }


if __name__ == "__main__":
    main()
