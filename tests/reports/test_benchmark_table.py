"""The table of a benchmark, of results written by hand."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from mobilesamv2.reports.benchmark import (
    benchmark_notes,
    benchmark_table,
    metric_text,
    read_cells,
    shown_metrics,
    weights_of,
    write_benchmark,
)
from mobilesamv2.reports.published import Published

PUBLISHED = [Published("edge_sam", "p", "instances_val2017.json", None, "mIoU box", 41.5, "A paper", "table 1", "")]


def write_result(folder: Path, name: str, checkpoint: str | None, device: str = "cpu", **changes: Any) -> Path:
    result = {
        "metrics": {"mIoU box": 0.41, "mIoUs box": 0.2, "NoC@90": 3.0},
        "interval": {"mIoU box": [0.4, 0.42], "mIoUs box": [0.1, 0.3], "NoC@90": [2.5, 3.5]},
        "n_gt": {"all": 7},
        "ms": {"image_encoder": 80.4, "total": 120.6},
        "cpu_ms": None,
        "protocol": {"name": "p", "annotations": "a/instances_val2017.json", "annotations_sha256": "1",
                     "num_images": 5000, "image_list_sha256": "2"},
        "run": {
            "model": {"name": name, "checkpoint": checkpoint, "sha256": [] if checkpoint is None else ["0"]},
            "encoder_cost": {"parameters": 5_780_000, "macs": 38_200_000_000, "input_side": 1024},
            "peak_memory": {"mib": 345.6, "of": "what was measured"},
            "device": device,
        },
    }  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(result | changes))
    return folder


def test_the_table_has_intervals_published_values_and_costs(tmp_path: Path) -> None:
    edge, mini = write_result(tmp_path / "e", "edge_sam", "w/edge_sam.pth"), write_result(tmp_path / "m", "mini", None)
    cells = read_cells([("edge_sam", "points", edge), ("mini", "points", mini), ("late", "points", tmp_path / "none")])
    head, first, second = benchmark_table(cells, PUBLISHED)
    assert head == [
        "model", "weights", "points: mIoU box", "points: NoC@90", "M parameters", "G MACs", "input side", "encoder ms",
        "points: ms", "peak MiB", "device",
    ]  # fmt: skip
    assert first == [
        "edge_sam", "edge_sam.pth", "41.0 [40.0, 42.0]; 41.5 (A paper, table 1: inside)", "3.00 [2.50, 3.50]", "5.78",
        "38.20", "1024", "80", "121", "346", "cpu",
    ]  # fmt: skip
    assert second[:4] == ["mini", "random", "41.0 [40.0, 42.0]", "3.00 [2.50, 3.50]"]
    notes = benchmark_notes(cells)
    assert "With random weights, so that their metrics say nothing: mini." in notes
    assert "Peak memory: what was measured." in notes
    assert "points: 5000 images, 7 objects of instances_val2017.json." in notes


def test_every_metric_is_in_the_csv_and_the_page_has_the_table(tmp_path: Path) -> None:
    folder = write_result(tmp_path / "e", "edge_sam", "w/edge_sam.pth")
    written = write_benchmark(read_cells([("edge_sam", "points", folder)]), PUBLISHED, tmp_path / "report")
    assert [path.name for path in written] == ["cells.csv", "table.csv", "table.md", "report.html"]
    with written[0].open(newline="") as file:
        rows = {row["metric"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["mIoU box", "mIoUs box", "NoC@90"]
    assert (rows["mIoUs box"]["value"], rows["mIoUs box"]["high"]) == ("0.2", "0.3")
    assert rows["mIoU box"]["published"] == "41.5 (A paper, table 1: inside)"
    assert (rows["NoC@90"]["encoder MACs"], rows["NoC@90"]["input side"]) == ("38200000000", "1024")
    assert "41.0 [40.0, 42.0]; 41.5" in written[2].read_text()
    page = written[3].read_text()
    assert "41.0 [40.0, 42.0]; 41.5 (A paper, table 1: inside)" in page
    assert "<h2>Figures</h2>" not in page


def test_a_model_on_two_devices_has_two_rows(tmp_path: Path) -> None:
    cells = [
        ("edge_sam", device, write_result(tmp_path / device, "edge_sam", "edge_sam.pth", device))
        for device in ("cpu", "gpu")
    ]
    table = benchmark_table(read_cells(cells), [])
    assert [(row[-1], row[table[0].index("gpu: mIoU box")]) for row in table[1:]] == [
        ("cpu", "-"), ("gpu", "41.0 [40.0, 42.0]"),
    ]  # fmt: skip


def test_results_of_other_images_do_not_stand_side_by_side(tmp_path: Path) -> None:
    one = write_result(tmp_path / "a", "edge_sam", None)
    protocol = json.loads((one / "results.json").read_text())["protocol"] | {"image_list_sha256": "3"}
    other = write_result(tmp_path / "b", "mini", None, protocol=protocol)
    with pytest.raises(ValueError, match=r"image_list_sha256 in its results\.json must be 2, got 3"):
        read_cells([("a", "p", one), ("b", "p", other)])


def test_metrics_of_all_objects_are_shown() -> None:
    names = ["AR@10", "ARs@10", "mAR", "AP", "AP50", "APs", "COCO AR1", "mIoU box", "mBIoU box", "mIoUl box", "mIoU@0",
             "mIoU@2", "mIoU@4", "mIoUs@1", "NoC@85", "NoF@85", "ar_10", "ar_s_10", "recall_50"]  # fmt: skip
    assert shown_metrics({"metrics": dict.fromkeys(names)}) == [
        "AR@10", "mAR", "AP", "mIoU box", "mBIoU box", "mIoU@0", "mIoU@2", "NoC@85", "ar_10", "recall_50",
    ]  # fmt: skip
    assert shown_metrics({"metrics": {"coverage": 0.5}}) == ["coverage"]


def test_a_metric_is_written_in_its_unit() -> None:
    assert metric_text("AP", 0.415, None) == "41.5"
    assert metric_text("AP", None, None) == "-"
    assert metric_text("NoC@90", 2.345, [2.0, 3.0]) == "2.35 [2.00, 3.00]"
    shipped = {"run": {"model": {"name": "mini_conv", "checkpoint": "x/mini_conv.safetensors"}}}
    assert weights_of(shipped) == "mini_conv.safetensors (shipped miniature)"
