"""Thousands of damaged and malicious files for every reader: it answers rightly, or in a sentence that names the file.

``--mutation-seed N`` draws other files, ``--mutation-rounds N`` as many times as many.
"""

import json
import random
import shutil
import time
import traceback
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from support.corrupt_inputs import PHOTOS, RESULTS, coco_content, small_tar
from support.mutations import (
    CANARY,
    Mutation,
    any_bytes,
    json_text,
    json_values,
    lines_of_text,
    npz_headers,
    one_bit,
    onnx_metadata,
    safetensors_header,
    tar_headers,
    zip_members,
    zip_pickles,
)
from support.runs import write_run
from torch import nn

from mobilesamv2 import build_sam, load_sam
from mobilesamv2.callbacks.resumable import require_resumable
from mobilesamv2.checkpoints import load_weights, save_weights
from mobilesamv2.cli.rerun import recorded_command
from mobilesamv2.cli.segment import segment_images
from mobilesamv2.data.base import choose_images
from mobilesamv2.data.coco import CocoDataset
from mobilesamv2.data.embeddings import EmbeddingCache
from mobilesamv2.data.images import read_rgb
from mobilesamv2.data.lvis import LvisDataset
from mobilesamv2.data.results_files import read_boxes, read_results
from mobilesamv2.data.sa1b import SA1BDataset
from mobilesamv2.data.tar_index import cached_index
from mobilesamv2.evaluation.results import read_masks
from mobilesamv2.evaluation.shards import ImageResult, ResultShards
from mobilesamv2.model_zoo import PACKAGE_WEIGHTS
from mobilesamv2.models.sam import Sam
from mobilesamv2.reports.compare import compare_results
from mobilesamv2.reports.result_files import read_result
from mobilesamv2.reports.sweep import failed_jobs, load_runs, sweep_rows
from mobilesamv2.reports.table import result_table
from mobilesamv2.structures import Masks, Prompts

MAX_SECONDS = 10.0
"""Processor time of one file, far more than any takes."""

EMBEDDINGS = torch.arange(2 * 8 * 16.0).view(2, 8, 4, 4)

JSON = (any_bytes, json_values, json_values, json_values, json_text)
NPZ = (any_bytes, one_bit, zip_members, zip_pickles, npz_headers)
PTH = (any_bytes, one_bit, zip_members, zip_pickles)


class Reader(NamedTuple):
    """A reader of files.

    Attributes:
        make: writes a sound file into an empty folder, and returns its path.
        read: reads it; returns what has to be the same after a changed bit, or None where that may change an answer.
        mutations: what the file suffers.
        cases: number of mutated files.
        names: what a sentence has to name; None is the file.
    """

    make: Callable[[Path], Path]
    read: Callable[[Path], Any]
    mutations: tuple[Mutation, ...]
    cases: int = 120
    names: str | None = None


@lru_cache
def micro() -> Sam:
    return build_sam("micro_conv")


def digest(module: nn.Module) -> list[float]:
    return [float(value.double().abs().sum()) for value in module.state_dict().values()]


def written(path: Path, content: bytes | str | Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, bytes | str) else json.dumps(content)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def read_coco(kind: type[CocoDataset]) -> Callable[[Path], None]:
    def read(path: Path) -> None:
        dataset = kind(path)
        for i in range(len(dataset)):
            dataset.ground_truth(i)

    return read


def read_tar(path: Path) -> None:
    dataset = SA1BDataset(path, max_broken=1.0)
    for i in range(len(dataset)):
        _ = dataset[i]


def make_index(folder: Path) -> Path:
    cached_index(small_tar(folder / "a.tar"), folder / "index")
    return next((folder / "index").iterdir())


def make_embeddings(folder: Path) -> Path:
    cache = EmbeddingCache(folder, {"teacher": "x"}, shard_size=2)
    cache.write([1, 2], EMBEDDINGS, pixels=torch.rand(2, 3, 64, 64))
    cache.flush()
    return next(folder.glob("*.safetensors"))


def read_embeddings(path: Path) -> list[float]:
    """An image that is not found is the teacher's again."""
    cache = EmbeddingCache(path.parent, {"teacher": "x"}, shard_size=2)
    read = [cache.read([i]) for i in (1, 2) if i in cache]
    assert all(each.shape == (1, 8, 4, 4) for each in read)
    return torch.cat(read).flatten().tolist() if len(read) == 2 else EMBEDDINGS.flatten().tolist()


def make_shard(folder: Path) -> Path:
    shards = ResultShards(folder, {"a": 1})
    for i in range(2):
        shards.add(ImageResult(i, {"n": np.arange(4), "x": np.full((2, 2), 0.5)}, {"encoder": 1.5}, 3))
    shards.flush()
    return next((folder / "progress").glob("*.npz"))


def read_shard(path: Path) -> list[Any]:
    done = ResultShards(path.parents[1], {"a": 1}).done
    return [(r.image_id, {k: v.tolist() for k, v in r.values.items()}, r.ms, r.num_prompts) for r in done]


def make_identity(folder: Path) -> Path:
    make_shard(folder)
    return folder / "progress" / "identity.json"


def make_weights(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        if name.endswith(".safetensors"):
            save_weights(micro(), folder / name)
        else:
            torch.save(micro().state_dict(), folder / name, _use_new_zipfile_serialization=name != "old.pth")
        return folder / name

    return make


def read_weights(path: Path) -> list[float]:
    load_weights(micro(), path)
    return digest(micro())


def make_checkpoint(folder: Path) -> Path:
    layer = nn.Linear(40, 30)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 40)).sum().backward()
    optimizer.step()
    content = {"state_dict": layer.state_dict(), "global_step": 7, "optimizer_states": [optimizer.state_dict()]}
    content |= {"loops": {}, "callbacks": {}, "lr_schedulers": []}
    torch.save(content, folder / "last.ckpt")
    return folder / "last.ckpt"


def read_checkpoint(path: Path) -> int:
    return require_resumable(path, cast(pl.LightningModule, nn.Linear(40, 30)), 100).steps


def make_onnx(folder: Path) -> Path:
    from onnx import TensorProto, helper, save

    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("image", "out")]
    graph = helper.make_graph([helper.make_node("Identity", ["image"], ["out"])], "g", ports[:1], ports[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, {"mobilesamv2": json.dumps({"model": "micro_conv", "image_size": 256})})
    save(model, folder / "encoder.onnx")
    return folder / "encoder.onnx"


def read_onnx(path: Path) -> None:
    from mobilesamv2.export.runtime import open_session, read_export_metadata

    read_export_metadata(open_session(path), path)


def make_detector(folder: Path) -> Path:
    return Path(shutil.copy(PACKAGE_WEIGHTS / "mini_detector.pt", folder / "detector.pt"))


def read_detector(path: Path) -> list[float]:
    from mobilesamv2.models.object_detector import build_detector

    return digest(build_detector(checkpoint=path))


def make_photo(name: str) -> Callable[[Path], Path]:
    return lambda folder: written(folder / name, PHOTOS[name])


def make_run(folder: Path) -> Path:
    dataset = LvisDataset(written(folder / "listing.json", coco_content()))
    write_run(dataset, folder / "b", 1.0)
    return write_run(dataset, folder / "a", 0.5) / "results.json"


def make_per_image(folder: Path) -> Path:
    return make_run(folder).with_name("per_image.npz")


def read_reports(path: Path) -> None:
    result_table({path.parent.name: read_result(path.parent)})
    sweep_rows(load_runs(path.parents[1]))


def make_record(folder: Path) -> Path:
    written(folder / "in" / "a.png", PHOTOS["rgba.png"])
    segment_again(folder / "out" / "a.json")
    return folder / "out" / "a.json"


def segment_again(path: Path) -> None:
    """A record is of the settings or is made anew; the file of all images is sound in either case."""
    rle = {"size": [9, 13], "counts": "e03m2"}
    box, one = torch.zeros(1, 4), torch.ones(1)
    prompt_index = torch.zeros(1, dtype=torch.int64)
    masks = Masks((9, 13), [rle], box, one, one, one, Prompts(boxes_xyxy=box), prompt_index)
    done = segment_images([path.parents[1] / "in" / "a.png"], lambda image: masks, path.parent, {"model": "x"})
    written_now = json.loads(done.written.read_text())
    assert len(written_now["annotations"]) == done.num_masks[0] == 1


def make_yaml(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        texts = {
            "hydra.yaml": "hydra:\n  job:\n    name: evaluate\n    config_name: evaluate\n",
            "overrides.yaml": "- model=mini\n- dataset=synthetic\n",
        }
        for each, text in texts.items():
            written(folder / "run" / ".hydra" / each, text)
        return folder / "run" / ".hydra" / name

    return make


def read_yaml(path: Path) -> None:
    recorded_command(path.parents[1])


def with_listing(read: Callable[[Path, CocoDataset], Any]) -> Callable[[Path], None]:
    def call(path: Path) -> None:
        listing = written(path.parent / "listing.json", coco_content())
        read(path, CocoDataset(listing))

    return call


PHOTO = Reader(Path, lambda path: read_rgb(path, str(path), upright="always") is None or None, (any_bytes,), 30)

READERS = {
    "tar": Reader(lambda folder: small_tar(folder / "a.tar"), read_tar, (any_bytes, tar_headers, tar_headers), 200),
    "tar index": Reader(make_index, lambda path: cached_index(path.parents[1] / "a.tar", path.parent)[0].tolist(), NPZ),
    "coco annotations": Reader(lambda f: written(f / "coco.json", coco_content()), read_coco(CocoDataset), JSON, 200),
    "lvis annotations": Reader(lambda f: written(f / "lvis.json", coco_content()), read_coco(LvisDataset), JSON),
    "results": Reader(
        lambda f: written(f / "results.json", RESULTS), with_listing(lambda p, d: list(read_results(p, d))), JSON, 200
    ),
    "boxes": Reader(lambda f: written(f / "boxes.json", RESULTS), with_listing(read_boxes), JSON),
    "list of images": Reader(
        lambda f: written(f / "ids.txt", "1\n2\n"),
        lambda p: choose_images([1, 2], image_list=p),
        (any_bytes, lines_of_text),
    ),
    "progress of an evaluation": Reader(make_shard, read_shard, NPZ, 200),
    "identity of an evaluation": Reader(make_identity, lambda path: bool(read_shard(path)), JSON, names="mutated"),
    "masks of an evaluation": Reader(
        lambda f: written(f / "a.json", RESULTS), lambda path: len(read_masks(path.parent)) and None, JSON
    ),
    "weights .pth": Reader(make_weights("a.pth"), read_weights, PTH),
    "weights of torch's older format": Reader(
        make_weights("old.pth"), lambda p: read_weights(p) and None, (any_bytes,), 60
    ),
    "weights .safetensors": Reader(
        make_weights("a.safetensors"),
        lambda p: load_sam(p) and None,
        (any_bytes, safetensors_header, safetensors_header),
        60,
    ),
    "checkpoint of a training": Reader(make_checkpoint, read_checkpoint, PTH),
    "detector": Reader(make_detector, read_detector, PTH, 40),
    "embeddings": Reader(make_embeddings, read_embeddings, (any_bytes, one_bit, safetensors_header), 200),
    "onnx": Reader(make_onnx, read_onnx, (any_bytes, onnx_metadata, onnx_metadata)),
    **{
        f"photo {name}": Reader(
            make_photo(name), lambda p: read_rgb(p, str(p), upright="always") is None or None, (any_bytes,), 30
        )
        for name in PHOTOS
    },
    "results.json in reports": Reader(make_run, read_reports, JSON),
    "per_image.npz in reports": Reader(
        make_per_image, lambda p: compare_results(p.parents[1] / "b", p.parent), NPZ, names="mutated"
    ),
    "record of segment": Reader(make_record, segment_again, JSON),
    **{
        f"{name} of rerun": Reader(make_yaml(name), read_yaml, (any_bytes, lines_of_text), 60)
        for name in ("hydra.yaml", "overrides.yaml")
    },
    "overrides.yaml of a sweep": Reader(
        make_yaml("overrides.yaml"),
        lambda p: failed_jobs(p.parents[2]) and None,
        (any_bytes, lines_of_text),
        60,
    ),
}
"""Every reader of the package. A file of a new kind is a row."""


def test_the_table_has_thousands_of_cases() -> None:
    assert sum(reader.cases for reader in READERS.values()) >= 2500


@pytest.mark.parametrize("name", READERS)
@pytest.mark.filterwarnings("ignore")
def test_a_mutated_file_is_read_rightly_or_refused_in_a_sentence(
    name: str, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    reader, seed, rounds = READERS[name], *map(pytestconfig.getoption, ("--mutation-seed", "--mutation-rounds"))
    sound = tmp_path / "sound"
    sound.mkdir()
    path = reader.make(sound)
    content, expected = path.read_bytes(), reader.read(path)
    CANARY.unlink(missing_ok=True)
    faults: list[str] = []
    for case in range(reader.cases * rounds):
        rng = random.Random(f"{name} {seed} {case}")
        mutation = reader.mutations[case % len(reader.mutations)]
        folder = tmp_path / "mutated"
        shutil.copytree(sound, folder)
        mutated = folder / path.relative_to(sound)
        mutated.write_bytes(mutation(content, rng))
        if fault := fault_of(reader, mutated, expected if mutation is one_bit else None):
            kept = shutil.move(folder, tmp_path / f"{case}")
            faults.append(f"case {case}, {mutation.__name__}: {fault}\n  kept in {kept}")
        shutil.rmtree(folder, ignore_errors=True)
        assert not CANARY.exists(), f"case {case}, {mutation.__name__}: code of the file ran"
    head = f"{len(faults)} of {reader.cases * rounds} cases of {name}, --mutation-seed {seed}:"
    assert not faults, "\n".join([head, *faults[:8]])


def fault_of(reader: Reader, path: Path, expected: Any) -> str:
    """What is wrong about a reader's answer; empty for a right answer and for a sentence with the file's name."""
    begun = time.process_time()
    try:
        found = reader.read(path)
        fault = f"{expected} became {found}" if expected is not None and found != expected else ""
    except (ValueError, OSError) as error:
        fault = "" if (reader.names or path.name) in str(error) else f"without the file's name, {described(error)}"
    except Exception as error:
        fault = described(error)
    seconds = time.process_time() - begun
    return fault or ("" if seconds < MAX_SECONDS else f"took {seconds:.0f} s")


def described(error: Exception) -> str:
    """An error in one line, with the line of this package that raised it."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "mobilesamv2" in frame.filename]
    place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "the test"
    return f"{type(error).__name__} at {place}: {' '.join(str(error).split())[:150]}"
