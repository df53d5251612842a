"""Full disks, outputs that can't be made, and what a stop leaves behind."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.corrupt_inputs import (
    PHOTOS,
    as_file,
    small_tar,
    wide,
)
from support.disks import small_disk
from support.runs import FAST, write_run

from mobilesamv2 import build_sam
from mobilesamv2.callbacks.checkpoint import AtomicCheckpointIO
from mobilesamv2.checkpoints import save_weights
from mobilesamv2.cli.main import main
from mobilesamv2.data.embeddings import EmbeddingCache
from mobilesamv2.data.lvis import LvisDataset
from mobilesamv2.data.synthetic.dataset import SyntheticDataset
from mobilesamv2.data.tar_index import cached_index
from mobilesamv2.data.writers import write_lvis, write_sa1b_tar
from mobilesamv2.downloads import download
from mobilesamv2.evaluation.results import write_record
from mobilesamv2.evaluation.shards import ImageResult, ResultShards
from mobilesamv2.files import atomic_write, read_arrays

SCENES = SyntheticDataset(4, (64, 96))


def write_embeddings(path: Path) -> None:
    EmbeddingCache(path.parent, {"teacher": "x"}, shard_size=1).write([1], torch.ones(1, 64, 16, 16))


def write_results(path: Path) -> None:
    shards = ResultShards(path.parent, {"a": 1})
    shards.add(ImageResult(1, {"x": np.random.default_rng(0).random(5000)}, None, 3))
    shards.flush()


WRITERS = {
    "a.safetensors": lambda path: save_weights(build_sam("micro_conv"), path),
    "a.ckpt": lambda path: AtomicCheckpointIO().save_checkpoint({"a": torch.ones(9000)}, path),
    "results.json": lambda path: write_record({"a": "x" * 9000}, path.parent),  # pyright: ignore
    "per_image.npz": lambda path: write_record({}, path.parent, a=np.random.default_rng(0).random(9000)),  # pyright: ignore
    "a.tar": lambda path: write_sa1b_tar((SCENES[i] for i in range(4)), path),
    "images/0.png": lambda path: write_lvis((SCENES[i] for i in range(4)), path.parents[1]),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_a_sentence_and_leaves_what_was_there(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"earlier")
    with small_disk(), pytest.raises(OSError, match=rf"{name} can't be written: .*(File too large|disk is full)"):
        WRITERS[name](path)
    assert path.read_bytes() == b"earlier"
    assert not list(tmp_path.rglob("*.partial"))
    WRITERS[name](path)
    assert path.read_bytes() != b"earlier"


@pytest.mark.parametrize(("write", "said"), [(write_embeddings, "safetensors can't"), (write_results, "npz can't")])
def test_a_full_disk_amid_a_cache_or_an_evaluation(tmp_path: Path, write: Any, said: str) -> None:
    with small_disk(), pytest.raises(OSError, match=said):
        write(tmp_path / "x")
    assert not list(tmp_path.rglob("*.partial"))
    write(tmp_path / "x")


def test_a_full_disk_keeps_no_index_and_reads_the_tar_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = small_tar(tmp_path / "a.tar")
    with small_disk(16):
        assert len(cached_index(path, tmp_path / "index").entries) == 1
    assert "can't be kept" in caplog.text


def test_a_full_disk_amid_a_download_is_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mobilesamv2 import downloads

    class Answer(io.BytesIO):
        status, headers = 200, {"Content-Length": "9000"}

    asked: list[Any] = []
    monkeypatch.setattr(downloads.urllib.request, "urlopen", lambda r, timeout: asked.append(r) or Answer(bytes(9000)))
    with small_disk(), pytest.raises(OSError, match=r"a\.pt\.part can't be written: .*resumes the download"):
        download("http://host/a.pt", tmp_path / "a.pt", pause_s=0)
    assert len(asked) == 1


def test_segmenting_onto_a_full_disk_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(as_file(wide(), "PNG"))
    with small_disk(), pytest.raises(SystemExit, match=r"error: .*out/a\.png can't be written: File too large"):
        main(["segment", str(tmp_path / "a.png"), "-o", str(tmp_path / "out"), *FAST])


def test_a_full_disk_under_a_report_or_yolos_data_is_a_sentence(tmp_path: Path) -> None:
    main(["synthesize", str(tmp_path / "scenes"), "--scenes", "2", "--size", "64", "--workers", "0"])
    dataset = LvisDataset(tmp_path / "scenes" / "annotations.json", tmp_path / "scenes" / "images")
    for share in (0.5, 1.0):
        write_run(dataset, tmp_path / "runs" / str(share), share)
    tar = str(small_tar(tmp_path / "a.tar"))
    for size, command, said in (
        (100, ["report", str(tmp_path / "runs")], r"report/runs\.csv"),
        (4096, ["report", str(tmp_path / "runs")], r"report/ar_against_k\.png"),
        (100, ["yolo-data", str(tmp_path / "yolo"), "--tars", tar], r"images/train/5\.jpg"),
    ):
        with small_disk(size), pytest.raises(SystemExit, match=rf"error: .*{said} can't be written: File too large"):
            main(command)
        main(command)


@pytest.mark.slow
def test_exporting_onto_a_full_disk_is_a_sentence(tmp_path: Path) -> None:
    with small_disk(), pytest.raises(SystemExit, match=r"error: .*out/encoder\.onnx can't be written: File too large"):
        main(["export", "mini_conv", "-o", str(tmp_path / "out")])
    assert list((tmp_path / "out").iterdir()) == []


def test_a_device_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PHOTOS["rgba.png"])
    for device in ("toaster", "cuda:99"):
        with pytest.raises(SystemExit, match=f"error: --device {device} can't be used here"):
            main(["segment", str(tmp_path / "a.png"), "-o", str(tmp_path / "out"), *FAST, "--device", device])


@pytest.mark.parametrize("command", ["segment", "synthesize", "synthesize tar", "yolo-data", "download"])
def test_an_output_below_a_file_is_a_sentence(tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Permissions do not stop every user; this does."""
    (tmp_path / "file").write_text("x")
    out = str(tmp_path / "file" / "out")
    tar, photo = str(small_tar(tmp_path / "a.tar")), tmp_path / "a.png"
    photo.write_bytes(PHOTOS["rgba.png"])
    given = {
        "segment": ["segment", str(photo), "-o", out, *FAST],
        "synthesize": ["synthesize", out, "--scenes", "1", "--workers", "0"],
        "synthesize tar": ["synthesize", f"{out}.tar", "--scenes", "1", "--workers", "0"],
        "yolo-data": ["yolo-data", out, "--tars", tar],
        "download": ["download", "mobile_sam.pt", "-o", out],
    }[command]
    with pytest.raises(SystemExit, match=r"^error: .*file/out"):
        main(given)


def test_whole_files_replace_or_leave(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    with atomic_write(path) as partial:
        partial.write_text("one")

    def is_interrupted() -> None:
        with atomic_write(path) as partial:
            partial.write_text("two")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        is_interrupted()
    assert path.read_text() == "one"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_broken_results_of_a_stopped_evaluation_are_named(tmp_path: Path) -> None:
    write_results(tmp_path / "x")
    [shard] = (tmp_path / "progress").glob("*.npz")
    content = shard.read_bytes()
    for torn in (content[:100], b"", bytes(len(content)), content[:-50] + bytes(50)):
        shard.write_bytes(torn)
        with pytest.raises(ValueError, match=rf"{shard.name} can't be read .*delete that file"):
            ResultShards(tmp_path, {"a": 1})
    shard.write_bytes(content)
    arrays = read_arrays(shard)
    for wrong in (
        {"image_id": arrays["image_id"]},
        arrays | {"value/x": arrays["value/x"][:0]},
        arrays | {"num_prompts": arrays["num_prompts"][:0]},
        arrays | {"environment": np.array("{")},
    ):
        np.savez(shard, **wrong)
        with pytest.raises(ValueError, match=rf"{shard.name} can't be read .*delete that file"):
            ResultShards(tmp_path, {"a": 1})
    shard.write_bytes(content)
    np.savez(shard.with_stem("other"), **arrays | {"value/x": arrays["value/x"][:, :3]})  # pyright: ignore
    with pytest.raises(ValueError, match=r"has values .*, and those of the other files are .*; delete that file"):
        ResultShards(tmp_path, {"a": 1})
    (tmp_path / "progress" / "identity.json").write_text("[")
    with pytest.raises(ValueError, match=r"identity\.json can't be read"):
        ResultShards(tmp_path, {"a": 1})
