"""Model cards of saved weights."""

import json
from pathlib import Path

import pytest
import yaml

from mobilesamv2 import SegAny, build_sam, save_pretrained
from mobilesamv2.model_card import model_card


def test_a_card_says_what_the_model_learned_and_how_well(tmp_path: Path) -> None:
    run, evaluation = tmp_path / "run", tmp_path / "evaluation"
    run.mkdir()
    evaluation.mkdir()
    identity = {
        "recipe": "distill",
        "task._target_": "mobilesamv2.tasks.distill.DistillDecoupled",
        "teacher.name": "sam_vit_h",
        "dataset._target_": "mobilesamv2.data.sa1b.SA1BDataset",
        "optimizer.lr": 0.001,
        "prompt_sampler": None,
    }
    (run / "run.json").write_text(json.dumps({"identity": identity, "result": {"steps": 1200}}))
    result = {
        "metrics": {"AR@10": 0.1234, "AR@100": None},
        "interval": {"AR@10": [0.1, 0.15]},
        "protocol": {"num_images": 100, "annotations": "/home/someone/val.json", "sampler": "ObjectAware"},
        "run": {
            "model": {"name": "mini", "checkpoint": ["/home/me/a.pt", "/home/me/c.pt"]},
            "detector": {"checkpoint": "/home/me/b.pt"},
        },
    }
    (evaluation / "results.json").write_text(json.dumps(result))
    save_pretrained(build_sam("mini"), tmp_path / "mine", run=run, results=evaluation, licence="Apache-2.0")
    text = (tmp_path / "mine" / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "mobilesamv2",
        "pipeline_tag": "mask-generation",
        "tags": ["segment-anything"],
        "license": "apache-2.0",
    }
    assert "the model `sam_vit_h` as its teacher and images of SA1BDataset, in 1,200 steps" in body
    assert "| `task` | DistillDecoupled |" in body
    assert "| `optimizer.lr` | 0.001 |" in body
    facts = "prompts of `ObjectAware`, detector `b.pt`, weights `a.pt`, weights `c.pt`, 100 images"
    assert f"({facts}, annotations `val.json`):" in body
    assert "/home" not in body
    assert "| AR@10 | 12.3 | 10.0 to 15.0 |" in body
    assert "| AR@100 | - |  |" in body
    assert "256 x 256 pixels" in body
    assert SegAny.from_pretrained(tmp_path / "mine").sam.name == "mini"


def test_a_card_states_what_it_does_not_know() -> None:
    text = model_card(build_sam("mini"), "mine")
    assert "license:" not in text
    assert "The licence of the weights is not stated." in text
    assert "No record of a training is given." in text


def test_what_a_card_can_not_read_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"There is no .*run\.json, which a training writes"):
        save_pretrained(build_sam("mini"), tmp_path / "mine", run=tmp_path)
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(ValueError, match=r"results\.json must be what an evaluation writes, with metrics and"):
        save_pretrained(build_sam("mini"), tmp_path / "mine", results=tmp_path)
    assert not (tmp_path / "mine").exists()


def write_result(folder: Path, **run: dict[str, str] | None) -> Path:
    folder.mkdir()
    result = {"metrics": {"NoC@80": 11.45, "mIoU@1": 0.5}, "interval": {"NoC@80": [0, 15.929]}, "protocol": {}}
    (folder / "results.json").write_text(json.dumps(result | {"run": run}))
    return folder


def test_clicks_are_no_percentage(tmp_path: Path) -> None:
    text = model_card(build_sam("mini"), "mine", results=write_result(tmp_path / "clicks", model={"name": "mini"}))
    assert "In percent, `NoC` in clicks, with" in text
    assert "| NoC@80 | 11.45 | 0.00 to 15.93 |" in text
    assert "| mIoU@1 | 50.0 |  |" in text


def test_what_another_model_did_is_refused(tmp_path: Path) -> None:
    sam = build_sam("mini")
    other = write_result(tmp_path / "other", model={"name": "micro_conv"})
    with pytest.raises(ValueError, match=r"is of an evaluation of micro_conv, and the card of mini\."):
        model_card(sam, "mine", results=other)
    encoder = write_result(tmp_path / "encoder", model={"name": "mini", "encoder": "repvit"})
    with pytest.raises(ValueError, match=r"of an evaluation of mini with the encoder repvit, and"):
        model_card(sam, "mine", results=encoder)
    detector = write_result(tmp_path / "detector", model=None, detector={"checkpoint": "a.pt"})
    with pytest.raises(ValueError, match=r"of an evaluation of a detector alone, and"):
        model_card(sam, "mine", results=[detector])
    (tmp_path / "run.json").write_text(json.dumps({"identity": {"recipe": "distill", "model.name": "micro_conv"}}))
    with pytest.raises(ValueError, match=r"run\.json is of a training of micro_conv, and the card of mini\."):
        model_card(sam, "mine", run=tmp_path)
