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
        "protocol": {"num_images": 100, "annotations": "/home/someone/val.json"},
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
    assert "(100 images, annotations `val.json`)" in body
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
    with pytest.raises(ValueError, match=r"results\.json must be what an evaluation writes, with metrics and protocol"):
        save_pretrained(build_sam("mini"), tmp_path / "mine", results=tmp_path)
    assert not (tmp_path / "mine").exists()
