"""Which settings of a benchmark's cell may differ from those that its result was made with."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf
from support.runs import composed

from mobilesamv2.recipes import schema
from mobilesamv2.recipes.benchmark_settings import require_same_settings

schema.register()

CLICKS = {"run": {"model": {"name": "mini"}}, "protocol": {"first_prompt": "centre"}}
BOXES_OF_A_DETECTOR = {
    "run": {"model": {"name": "mini"}, "detector": {"architecture": "yolov8n"}},
    "protocol": {"sampler": "ObjectAware"},
}

Compare = Callable[..., None]


@pytest.fixture
def compare(tmp_path: Path) -> Compare:
    """Compare a run with a result that was made with other settings in conf/, or other overrides."""

    def compare(result: dict[str, Any], overrides: list[str], then: dict[str, Any], before: list[str] | None = None):
        cfg = composed(*overrides)
        record = OmegaConf.to_container(composed(*(before or overrides)))
        for key, value in then.items():
            *path, last = key.split(".")
            node: Any = record
            for part in path:
                node = node[part]
            assert last in node
            node[last] = value
        (tmp_path / ".hydra").mkdir(exist_ok=True)
        (tmp_path / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(before or overrides))
        (tmp_path / ".hydra" / "config.yaml").write_text(yaml.safe_dump(record))
        (tmp_path / "results.json").write_text(json.dumps(result))
        require_same_settings(tmp_path, overrides, cfg, "Go.")

    return compare


def test_settings_that_nothing_read_may_differ(compare: Compare) -> None:
    given = ["task=evaluate_clicks", "model=mini"]
    ignored = {
        "detector.image_size": 640, "detector.architecture": "yolov8s", "prompt_sampler.points_per_side": 32,
        "trainer.use_distributed_sampler": True, "batch_size": 4,
    }  # fmt: skip
    compare(CLICKS, given, ignored)
    compare(CLICKS, given, {}, [*given, "detector=yolov8n", "prompt_sampler=grid", "prompt_sampler.points_per_side=8"])
    for key, value in {"trainer.precision": "bf16-mixed", "model.image_size": 512, "task.min_area": 9}.items():
        with pytest.raises(ValueError, match=rf"holds another run \({key} was {value} and is .*\)\. Go\."):
            compare(CLICKS, given, ignored | {key: value})


def test_settings_of_a_detector_that_took_part_count(compare: Compare) -> None:
    given = ["prompt_sampler=object_aware", "detector=yolov8n", "model=mini"]
    for key, value in {"detector.architecture": "yolov8s", "prompt_sampler.max_prompts": 9}.items():
        with pytest.raises(ValueError, match=rf"holds another run \({key} was {value} and is"):
            compare(BOXES_OF_A_DETECTOR, given, {key: value})
    with pytest.raises(ValueError, match=r"\(prompt_sampler.snap was 3 and is null\)"):
        compare(BOXES_OF_A_DETECTOR, given, {}, [*given, "prompt_sampler.snap=3"])


def test_null_is_any_size_of_a_detectors_input(compare: Compare) -> None:
    """Which one it is, the weights say."""
    given = ["prompt_sampler=object_aware", "detector=yolov8n", "model=mini"]
    compare(BOXES_OF_A_DETECTOR, [*given, "detector.image_size=null"], {"detector.image_size": 1024})
    compare(BOXES_OF_A_DETECTOR, [*given, "detector.image_size=384"], {"detector.image_size": None})
    sized = [*given, "detector.image_size=512"]
    with pytest.raises(ValueError, match=r"\(detector.image_size was 384 and is 512\)"):
        compare(BOXES_OF_A_DETECTOR, sized, {"detector.image_size": 384})
    recorded = {"architecture": "yolov8n", "image_size": 384}  # of the network as it was built
    result = BOXES_OF_A_DETECTOR | {"run": {"model": {"name": "mini"}, "detector": recorded}}
    with pytest.raises(ValueError, match=r"\(detector.image_size was 384 and is 512\)"):
        compare(result, sized, {"detector.image_size": None})


def test_a_file_may_have_another_name(compare: Compare, tmp_path: Path) -> None:
    """``changed_inputs`` compares its content; one that is not there counts by its name."""
    file, gone = tmp_path / "boxes.json", tmp_path / "gone.json"
    file.touch()
    given = ["task=evaluate_boxes", "model=mini"]
    for now in ({"then": {"task.boxes": "old.json"}}, {"then": {}, "before": [*given, "task.boxes=old.json"]}):
        compare(CLICKS, [*given, f"task.boxes={file}"], **now)
        with pytest.raises(ValueError, match=r"\(task.boxes was old.json and is .*gone.json\)"):
            compare(CLICKS, [*given, f"task.boxes={gone}"], **now)
        with pytest.raises(ValueError, match=r"\(task.boxes was old.json and is null\)"):
            compare(CLICKS, given, **now)
    with pytest.raises(ValueError, match=r"\(model.checkpoint was \['a', 'b'\] and is .*boxes.json\)"):
        compare(CLICKS, [*given, f"model.checkpoint={file}"], {"model.checkpoint": ["a", "b"]})


@pytest.mark.parametrize("content", ["[]", '{"run": 3}', '{"run": {}}', "{"])
def test_a_damaged_result_is_a_sentence(compare: Compare, tmp_path: Path, content: str) -> None:
    compare(CLICKS, ["model=mini"], {})
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(ValueError, match=r"results\.json.*Go\.$"):
        require_same_settings(tmp_path, ["model=mini"], composed("model=mini"), "Go.")
