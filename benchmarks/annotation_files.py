"""Reading annotations of LVIS val's size, and measuring the masks of results files: seconds and memory.

    python benchmarks/annotation_files.py              # three minutes of a core; the files are drawn
    python benchmarks/annotation_files.py --write      # the documentation's figures

Each measurement is a process of its own, by its processor time. Memory of the annotations is what the process holds
once they are read, beyond what it held before; that of the results is the peak with 1,000 images beyond that with 100.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from lvis_scale import DrawnImages, resident_mb, run_part
from lvis_scale_texts import LVIS_IMAGES
from result_pages import RESULTS, ROOT, digits, paragraph, read_figures, write_figures, write_pages
from segevery_official import memory

ANNOTATION_FILES = RESULTS / "annotation_files.csv"
PAGES = [ROOT / "docs" / "evaluate.md", ROOT / "docs" / "data.md"]
LVIS_ANNOTATIONS = 244_707
MASKS = 1000
CORNERS = 43
"""Of a drawn polygon, with which the file is about as large as LVIS val's polygons would be with three decimals."""


def write_polygons(path: Path, images: int, annotations: int) -> None:
    """Write a file in LVIS's layout, of polygons in images of 480 x 640 pixels."""
    rng = np.random.default_rng(0)
    angles = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False)
    listed = [{"id": i, "height": 480, "width": 640, "file_name": f"{i:012}.jpg"} for i in range(images)]
    with path.open("w") as file:
        file.write(f'{{"images": {json.dumps(listed)}, "categories": [{{"id": 1, "frequency": "f"}}], "annotations": [')
        for i in range(annotations):
            reach, x, y = np.exp(rng.uniform(1, 5)), rng.uniform(0, 640), rng.uniform(0, 480)
            outline = np.stack([x + reach * np.cos(angles), y + reach * np.sin(angles)], 1).clip(0, (640, 480))
            one = {"id": i, "image_id": i % images, "category_id": 1, "area": float(reach**2)}
            one["segmentation"] = [outline.round(3).ravel().tolist()]
            file.write(", " * bool(i) + json.dumps(one))
        file.write("]}")


def write_results(folder: Path, images: int) -> None:
    """Write drawn masks into ``folder/masks``, as an evaluation does, and the objects as ``folder/lvis.json``."""
    run_part(argparse.Namespace(part=folder, images=images, masks=MASKS, save_masks=True, kill_after=None, processes=1))
    drawn, listed, objects = DrawnImages(images), [], []
    for i in range(images):
        truth = drawn.ground_truth(i)
        listed.append({"id": i, "height": truth.size[0], "width": truth.size[1], "file_name": f"{i}.png"})
        for rle, area in zip(truth.rles, truth.areas, strict=True):
            one = {"id": len(objects) + 1, "image_id": i, "category_id": 1, "segmentation": rle, "area": area}
            objects.append(one)
    content = {"images": listed, "annotations": objects, "categories": [{"id": 1, "frequency": "f"}]}
    (folder / "lvis.json").write_text(json.dumps(content))


def read_file(path: Path) -> dict[str, float]:
    """Read annotations; return processor seconds, and MiB that they hold."""
    from mobilesamv2.data.lvis import LvisDataset

    before, began = resident_mb(), time.process_time()
    dataset = LvisDataset(path)
    seconds = time.process_time() - began
    gc.collect()
    return {"s": seconds, "MiB": (resident_mb() - before) * 1e6 / 2**20, "images": len(dataset)}


def measure_masks(folder: Path) -> dict[str, float]:
    """Measure the masks of results files; return processor seconds, and the peak of memory, MB."""
    from mobilesamv2.recipes.run import evaluate

    began = time.process_time()
    files = [f"dataset.annotations={folder}/lvis.json", f"predictions={folder}/masks"]
    evaluate("dataset=lvis", *files, f"output_dir={folder}/scores")
    return {"s": time.process_time() - began, "MB": memory(torch.device("cpu"), peak=True) / 1e6}


WORK = {"read": read_file, "measure": measure_masks}


def in_a_process(work: str, path: Path) -> dict[str, float]:
    """Do a part in a process of its own."""
    command = [sys.executable, "-W", "ignore", __file__, "--part", work, str(path)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    print(work, path.name, *(f"{value:.1f} {name}" for name, value in found.items()), flush=True)
    return found


def stated() -> dict[str, str]:
    """Return the documentation's texts by their names, of the file of results."""
    return texts(read_figures(ANNOTATION_FILES))


def texts(figures: Mapping[str, float]) -> dict[str, str]:
    """Return the texts of the pages by their names, of figures by theirs."""
    size, held = f"{figures['file MB']:.0f} MB", f"{digits(figures['read MiB'])} MiB"
    reading = (
        f"A synthetic file of LVIS val's size ({LVIS_IMAGES:,} images, {LVIS_ANNOTATIONS:,} annotations, {size}) takes "
        f"{digits(figures['read s'])} s of CPU time and {held}, which workers share."
    )
    measuring = (
        f"1,000 images with a million masks took {digits(figures['measure s'])} s of CPU time, and "
        f"{digits(figures['measure MB more'])} MB more memory than 100 images did."
    )
    shared = f"A synthetic file of LVIS val's size, {size}, takes {held}."
    return {
        "annotations_read": paragraph(reading),
        "masks_measured": paragraph(measuring),
        "annotations_shared": paragraph(shared),
    }


def main() -> None:
    """Print what each part takes, or do one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write results/annotation_files.csv, and its texts")
    parser.add_argument("--part", nargs=2, metavar=("WORK", "PATH"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        print(json.dumps(WORK[args.part[0]](Path(args.part[1]))))
        return
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write_polygons(root / "lvis.json", LVIS_IMAGES, LVIS_ANNOTATIONS)
        figures = {"file MB": (root / "lvis.json").stat().st_size / 1e6}
        figures |= {f"read {key}": value for key, value in in_a_process("read", root / "lvis.json").items()}
        measured = {}
        for images in (100, 1000):
            write_results(root / str(images), images)
            measured[images] = in_a_process("measure", root / str(images))
        figures |= {"measure s": measured[1000]["s"], "measure MB more": measured[1000]["MB"] - measured[100]["MB"]}
        if args.write:
            write_figures(ANNOTATION_FILES, figures)
            write_pages(PAGES, stated())


if __name__ == "__main__":
    main()
