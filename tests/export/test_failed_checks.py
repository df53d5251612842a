"""Graphs that fail a check do not reach the folder, and those that it had stay."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from support.exports import WEIGHTS, Export

from mobilesamv2 import build_sam
from mobilesamv2.cli.main import main as cli
from mobilesamv2.export.check import check_graphs
from mobilesamv2.export.graphs import decoder_graph
from mobilesamv2.export.onnx import export_metadata, export_onnx, write_graph

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with graphs of an earlier export."""
    for part in ("encoder", "decoder"):
        (tmp_path / f"{part}.onnx").write_text(f"an earlier {part}")
    return tmp_path


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_graph_that_differs_is_refused_and_earlier_ones_stay(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mobilesamv2.export.check.TOLERANCES", {"fp32": 1e-12})
    before = content(folder)
    message = r"error: .*encoder\.onnx differs from torch by more than 1e-12 .*: image_embedding by \d\.\de-0\d\."
    with pytest.raises(SystemExit, match=message):
        cli(["export", "micro_conv", "--random", "-o", str(folder)])
    assert content(folder) == before
    assert "written" not in capsys.readouterr().out


def test_the_difference_is_named(exported: Export) -> None:
    other = build_sam("mini_conv", WEIGHTS)
    last: Any = other.mask_decoder.iou_prediction_head.layers[-1]
    with torch.no_grad():
        last.bias.add_(0.1)
    message = r"decoder\.onnx differs from torch by more than 0\.001 .* predicted_iou by .*--no-check"
    with pytest.raises(ValueError, match=message):
        check_graphs(other, exported.folder / "encoder.onnx", exported.folder / "decoder.onnx")


def test_a_decoder_that_fails_takes_back_its_encoder(
    exported: Export, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(graph: Any, path: Path, *args: Any) -> None:
        if path.name == "decoder.onnx":
            raise ValueError("an invalid graph")
        shutil.copy(exported.folder / path.name, path)

    monkeypatch.setattr("mobilesamv2.export.onnx.write_graph", write)
    before = content(folder)
    with pytest.raises(ValueError, match="an invalid graph"):
        export_onnx(exported.sam, folder)
    assert content(folder) == before


def test_an_opset_that_torch_converts_wrongly_is_an_invalid_graph(tmp_path: Path) -> None:
    """The reason of ``FIRST_OPSET``: which of the two happens depends on the version of torch."""
    sam = build_sam("micro_conv")
    with pytest.raises(ValueError, match=r"invalid graph for decoder\.onnx|can't write 17"):
        write_graph(decoder_graph(sam), tmp_path / "decoder.onnx", export_metadata(sam), 17)


@pytest.mark.parametrize("opset", [18, 23])
@pytest.mark.parametrize("signature", ["mobilesamv2", "sam"])
def test_opsets_that_can_be_written(opset: int, signature: str, tmp_path: Path) -> None:
    written = export_onnx(build_sam("micro_conv"), tmp_path, opset, signature=signature)
    assert max(written.differences.values()) < 2e-5
