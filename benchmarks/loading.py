"""Images/s of one core on their way from photos to a batch for the network, and where the time goes.

    python benchmarks/loading.py --photos data/sa1b/sa_000000.tar     # or drawn photos, without --photos; a minute
    python benchmarks/loading.py --photos FOLDER --images 4 --write   # the documentation's figures, of photos of SA-1B
    python benchmarks/loading.py --images 8 --height 300 --width 450 --image-size 256        # in seconds

Every loader runs in this process alone, without workers, and its processor time is counted, so that other programs
disturb it little; with workers each core gives as much, less what passing batches on takes. All of them end with the
network's input, a normalised batch of float32:

- plain loop: Pillow decodes and resizes, the sample is normalised, batches are stacked, without a loader.
- without keeping pixels: this project's loader with normalisation in it, which is what it did before both.
- folder: torchvision's ImageFolder with its transforms on Pillow images, to the same size; of photos in one folder.
- webdataset: the same photos in a tar, decoded and transformed alike; if it is installed.
- this project, without cache; with a cache, the first pass, which fills it; and later passes, from disk (files are
  dropped from the system's memory) and from memory. Batches hold bytes; normalisation, which a GPU does, is counted
  apart.

Everything that this project loads is compared with the plain loop, to the bit.
"""

from __future__ import annotations

import argparse
import io
import os
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from loading_texts import SHARES, terabytes, write_loading
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from mobilesamv2.data.base import ImageDataset
from mobilesamv2.data.datamodule import TrainingData
from mobilesamv2.data.images import read_rgb
from mobilesamv2.data.photos import PhotosDataset
from mobilesamv2.data.pixels import FORMATS, PixelCache
from mobilesamv2.data.sa1b import SA1BDataset
from mobilesamv2.data.samples import EncoderSamples, Sample, normalized_pixels, to_model_inputs
from mobilesamv2.data.synthetic.dataset import SyntheticDataset
from mobilesamv2.data.writers import write_sa1b_tar
from mobilesamv2.transforms import PIXEL_MEAN, PIXEL_STD, ModelFrame


def draw(tar: Path, count: int, size: tuple[int, int]) -> None:
    """Write drawn photos as a tar of SA-1B's layout."""
    scenes = SyntheticDataset(count, size)
    write_sa1b_tar((scenes[i] for i in range(count)), tar)


def extract(images: ImageDataset, folder: Path) -> list[Path]:
    """Write the photos as files in one folder, as ImageFolder expects them: as one class."""
    (folder / "photos").mkdir(parents=True)
    paths = []
    for i in range(len(images)):
        suffix, content = images.stored_image(i)
        paths.append(folder / "photos" / f"{i:06}{suffix}")
        paths[-1].write_bytes(content)
    return paths


def plain_loop(paths: list[Path], args: argparse.Namespace) -> Iterator[Tensor]:
    """Yield batches of decoded, resized and normalised photos."""
    for begin in range(0, len(paths), args.batch_size):
        chosen = paths[begin : begin + args.batch_size]
        yield torch.stack([normalized_pixels(read_rgb(path), args.image_size) for path in chosen])


class PadToSquare:
    """Resizes the longest side of a Pillow image, and pads the normalised tensor."""

    def __init__(self, side: int) -> None:
        self.side = side
        mean, std = ([value / 255 for value in values] for values in (PIXEL_MEAN, PIXEL_STD))
        self.to_tensor = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)])

    def __call__(self, image: Image.Image) -> Tensor:
        """Return a photo as the network's input (3, S, S)."""
        height, width = ModelFrame((image.height, image.width), self.side).resized
        pixels: Any = self.to_tensor(image.resize((width, height), Image.Resampling.BILINEAR))
        return torch.nn.functional.pad(pixels, (0, self.side - width, 0, self.side - height))


def webdataset_batches(paths: list[Path], folder: Path, args: argparse.Namespace) -> Iterator[Tensor]:
    """Yield batches of the photos by webdataset, from a tar."""
    import webdataset  # pyright: ignore[reportMissingImports]

    with tarfile.open(folder / "webdataset.tar", "w") as tar:
        for path in paths:
            tar.add(path, path.name)
    dataset = webdataset.WebDataset(str(folder / "webdataset.tar"), shardshuffle=False)
    transform = PadToSquare(args.image_size)
    for (images,) in dataset.decode("pil").to_tuple("jpg;png").batched(args.batch_size):
        yield torch.stack([transform(image) for image in images])


def our_batches(samples: EncoderSamples, args: argparse.Namespace) -> Iterator[Sample]:
    """Yield batches as they are handed to the device: of bytes."""
    data = TrainingData(samples, min(args.batch_size, len(samples)))
    for batch in data.predict_dataloader():
        yield data.on_before_batch_transfer(batch, 0)


def flush(samples: EncoderSamples) -> None:
    """Write the last, short shards."""
    for pixels in samples.pixel_caches.values():
        pixels.flush()


def forget(folder: Path) -> None:
    """Have the system drop what it keeps of the files in memory."""
    for path in folder.rglob("*.*"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def cpu_ms(batches: Iterable[Any], images: int) -> float:
    """Return the processor time of an image, ms."""
    begin = time.process_time()
    for _ in batches:
        pass
    return (time.process_time() - begin) * 1e3 / images


def best_ms(function: Callable[[], Any], repeats: int) -> float:
    """Return the least processor time of a call, ms."""
    times = []
    for _ in range(repeats):
        begin = time.process_time()
        function()
        times.append((time.process_time() - begin) * 1e3)
    return min(times)


def stage_ms(content: bytes, args: argparse.Namespace) -> dict[str, float]:
    """Return the processor time of each stage for one photo, ms."""
    image = read_rgb(io.BytesIO(content), "photo")
    frame = ModelFrame((image.shape[0], image.shape[1]), args.image_size)
    rgb = frame.resize(image)
    pixels = normalized_pixels(image, args.image_size)
    resize = best_ms(lambda: frame.resize(image), args.repeats)
    stages = {
        "decode": best_ms(lambda: read_rgb(io.BytesIO(content), "photo"), args.repeats),
        "resize": resize,
        "normalise, pad": best_ms(lambda: normalized_pixels(image, args.image_size), args.repeats) - resize,
        "collate float32": best_ms(lambda: torch.stack([pixels] * 4), args.repeats) / 4,
    }
    for pixel_format in FORMATS:
        with tempfile.TemporaryDirectory() as name:
            cache = PixelCache(name, args.image_size, pixel_format, shard_size=1)
            encoded = cache.encode(0, "", rgb, frame.original_size)
            cache.write(encoded)
            encode = best_ms(lambda c=cache: c.encode(0, "", rgb, frame.original_size), args.repeats)
            read = best_ms(lambda c=cache: c.read(0, ""), args.repeats)
        stages |= {f"{pixel_format}: encode": encode, f"{pixel_format}: read, check": read}
        stages[f"{pixel_format}: bytes, MB"] = encoded.content.nbytes / 1e6
    return stages


def print_stages(images: ImageDataset, args: argparse.Namespace) -> dict[str, float]:
    """Print, and return, the mean of each stage over some photos."""
    count = min(len(images), args.stage_images)
    each = [stage_ms(images.stored_image(i)[1], args) for i in range(count)]
    means = {name: float(np.mean([stages[name] for stages in each])) for name in each[0]}
    print(f"\nms of a core for a photo, mean of {count}, to {args.image_size} pixels")
    for name, mean in means.items():
        print(f"  {name:20} {mean:8.2f}")
    return means


def print_disk(megabytes: dict[str, float]) -> None:
    """Print what the pixels of parts of SA-1B take, if its photos are like these."""
    print("\nbytes of the pixels of SA-1B, if its photos are like these")
    for name, each in megabytes.items():
        sizes = zip(SHARES, terabytes(each), strict=True)
        parts = "   ".join(f"{share:4.0%} {size:7.2f} TB" for share, size in sizes)
        print(f"  {name:5} {each:5.2f} MB an image   {parts}")


def compare_loaders(images: ImageDataset, folder: Path, args: argparse.Namespace) -> tuple[dict[str, float], float]:
    """Return the processor time of an image by each loader, and that of normalising it on the device, ms."""
    paths, count = extract(images, folder / "extracted"), len(images)
    wanted = list(plain_loop(paths, args))
    times = {"plain loop": cpu_ms(plain_loop(paths, args), count)}
    peer = DataLoader(ImageFolder(str(folder / "extracted"), PadToSquare(args.image_size)), args.batch_size)
    times["torchvision folder"] = cpu_ms(peer, count)
    if find_spec("webdataset") is None:
        print("webdataset is not installed and is left out; `pip install webdataset` adds it.")
    else:
        times["webdataset"] = cpu_ms(webdataset_batches(paths, folder, args), count)
    normalised = (to_model_inputs(batch) for batch in our_batches(EncoderSamples(images, args.image_size), args))
    times["without keeping pixels"] = cpu_ms(normalised, count)
    times["this project, no cache"] = cpu_ms(our_batches(EncoderSamples(images, args.image_size), args), count)
    for pixel_format in FORMATS:
        samples = EncoderSamples(images, args.image_size)
        samples.keep_pixels(folder / pixel_format, pixel_format)
        times[f"{pixel_format}, first pass"] = cpu_ms(our_batches(samples, args), count)
        flush(samples)
        forget(folder / pixel_format)
        times[f"{pixel_format}, warm, from disk"] = cpu_ms(our_batches(samples, args), count)
        times[f"{pixel_format}, warm"] = min(cpu_ms(our_batches(samples, args), count) for _ in range(args.repeats))
        for batch, pixels in zip(our_batches(samples, args), wanted, strict=True):
            if not torch.equal(to_model_inputs(batch)["pixels"], pixels):
                raise ValueError(f"cache.pixels={pixel_format} must give the bits of the plain loop, and does not.")
    batch = next(our_batches(EncoderSamples(images, args.image_size), args))
    normalise = best_ms(lambda: to_model_inputs(dict(batch)), args.repeats) / len(batch["rgb"])
    print(f"\nnormalisation, which the device does: {normalise:.2f} ms of a core for an image on this CPU")
    return times, normalise


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="a tar of SA-1B or a folder of photos; drawn ones without")
    parser.add_argument("--images", type=int, default=32, help="photos to load")
    parser.add_argument("--stage-images", type=int, default=8, help="photos whose stages are measured")
    parser.add_argument("--height", type=int, default=1500, help="of drawn photos, pixels; SA-1B's are 1500 x 2250")
    parser.add_argument("--width", type=int, default=2250)
    parser.add_argument("--image-size", type=int, default=1024)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    write_help = "write the file of results, and the docs; of 1024 pixels, with webdataset and --photos"
    parser.add_argument("--write", action="store_true", help=write_help)
    args = parser.parse_args()
    if args.write and (args.photos is None or args.image_size != 1024 or find_spec("webdataset") is None):
        parser.error("--write wants --photos, --image-size 1024 and `pip install webdataset`, which the docs speak of.")
    return args


def main() -> None:
    """Print the stages, the loaders and the bytes."""
    args = parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder, tar = Path(name), args.photos
        if tar is None:
            tar = folder / "sa_000000.tar"
            draw(tar, args.images, (args.height, args.width))
        images = PhotosDataset(tar, args.images) if tar.is_dir() else SA1BDataset(tar, args.images)
        means = print_stages(images, args)
        times, normalise = compare_loaders(images, folder, args)
        print(f"\nimages/s of a core, {len(images)} photos, batches of {args.batch_size}; the same bits in all of ours")
        for way, ms in times.items():
            print(f"  {way:24} {1e3 / ms:8.1f}   {times['plain loop'] / ms:6.2f} x plain loop")
        if args.write:
            figures = {"photos": len(images), "normalise on the device": normalise}
            figures |= {f"stage {name}": ms for name, ms in means.items()}
            write_loading(figures | {f"loader {name}": ms for name, ms in times.items()})
        print_disk({pixel_format: means[f"{pixel_format}: bytes, MB"] for pixel_format in FORMATS})


if __name__ == "__main__":
    main()
