"""``mobilesamv2 synthesize``: synthetic scenes with exact masks."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.description = "Write synthetic scenes with exact masks, to train and evaluate on."
    parser.add_argument("output", type=Path, help="a .tar for SA-1B's layout, else a folder for LVIS's")
    parser.add_argument("--scenes", type=int, default=100, help="number of scenes (default: %(default)s)")
    parser.add_argument("--size", type=int, default=256, help="side, pixels (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="data sets of different seeds share no scene (default: 0)")
    split_help = "train, or test for shapes and textures that train doesn't have (default: %(default)s)"
    parser.add_argument("--split", default="train", help=split_help)
    layout_help = "lvis, with LVIS's sizes and number of objects, or hard: more and smaller ones (default: %(default)s)"
    parser.add_argument("--layout", default="lvis", help=layout_help)
    parser.add_argument("--workers", type=int, default=2, help="processes that render (default: %(default)s)")


def run(args: argparse.Namespace) -> None:
    """Render the scenes into a tar or a folder.

    Raises:
        ValueError: if an option is out of range.
    """
    from torch.utils.data import DataLoader
    from tqdm import tqdm

    from mobilesamv2.data.evaluation_samples import identity_collate
    from mobilesamv2.data.synthetic.dataset import SyntheticDataset
    from mobilesamv2.data.writers import write_lvis, write_sa1b_tar

    if args.scenes < 1 or args.size < 16:
        raise ValueError(f"--scenes must be at least 1 and --size at least 16, got {args.scenes} and {args.size}.")
    dataset = SyntheticDataset(args.scenes, (args.size, args.size), args.seed, args.split, args.layout)
    scenes = DataLoader(dataset, batch_size=None, collate_fn=identity_collate, num_workers=args.workers)
    progress = tqdm(scenes, total=args.scenes, desc=f"rendering {args.output}", unit="scene", disable=None)
    write = write_sa1b_tar if args.output.suffix == ".tar" else write_lvis
    write(progress, args.output)
    what = args.output if args.output.suffix == ".tar" else f"{args.output}/annotations.json and {args.output}/images"
    print(f"{args.scenes} scenes; written: {what}")
