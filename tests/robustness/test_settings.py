"""Settings that make no sense, and the table in docs/robustness.md."""

import json
import re
from pathlib import Path

import pytest
from support import ROOT
from support.corrupt_inputs import RESULTS, coco_content
from support.runs import composed, evaluate_here

from mobilesamv2.recipes import schema
from mobilesamv2.recipes.segment_everything import OPTIONS


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("dataset.limit=abc", "dataset.limit must be float | None for LvisDataset, got 'abc'."),
        ("dataset.limit=true", "dataset.limit must be float | None for LvisDataset, got True."),
        ("dataset.annotations=null", "dataset.annotations must be str | Path for LvisDataset, got null."),
        (
            "prompt_sampler.points_per_side=1.5",
            "prompt_sampler.points_per_side must be int for GridProposals, got 1.5.",
        ),
        ("prompt_sampler.multimask_output=1", "prompt_sampler.multimask_output must be bool for GridProposals, got 1."),
        ("task.metric.ks=3", "task.metric.ks must be Sequence[int] for AverageRecall, got 3."),
        ("task.metric.ks=[10,a]", "task.metric.ks must be Sequence[int] for AverageRecall, got [10, 'a']."),
        ("model.checkpoint=3", "model.checkpoint must be "),
        (
            "dataset=synthetic dataset.size=[256]",
            "dataset.size must be tuple[int, int] for SyntheticDataset, got [256].",
        ),
        ("+prompt_sampler.typo=1", "There is no prompt_sampler.typo; GridProposals has points_per_side,"),
        ("+dataset.imgs=x", "There is no dataset.imgs. Did you mean dataset.images? LvisDataset has annotations,"),
        ("task.metric=null", "task.metric must be dict for EvaluateSegEvery, got null."),
        ("model=by_name", "model.name has no value yet: model.name=VALUE."),
        ("~dataset", "dataset must be chosen for this run: dataset=NAME, one of conf/dataset."),
    ],
)
def test_a_setting_that_makes_no_sense_is_a_sentence(override: str, said: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(said)}"):
        schema.require_settings(composed(*override.split()), ["dataset", "model"], OPTIONS)


@pytest.mark.parametrize(
    "override", ["prompt_sampler.pred_iou_thresh=1", "model.checkpoint=[a,b]", "trainer.devices=2"]
)
def test_settings_of_other_types_that_do_fit(override: str) -> None:
    schema.require_settings(composed(override), ["dataset", "model"], OPTIONS)


def test_a_data_set_without_objects_has_no_recall_and_no_error(tmp_path: Path) -> None:
    content = coco_content() | {"annotations": []}
    (tmp_path / "file.json").write_text(json.dumps(content))
    (tmp_path / "results.json").write_text(json.dumps(RESULTS[:1]))
    given = [f"dataset.annotations={tmp_path / 'file.json'}", f"predictions={tmp_path / 'results.json'}"]
    evaluate_here("dataset=coco", *given, f"output_dir={tmp_path / 'out'}")
    result = json.loads((tmp_path / "out" / "results.json").read_text())
    assert result["metrics"]["mAR"] is None
    assert result["n_gt"]["all"] == 0
    without = ["prompt_sampler=object_aware", "~detector", f"output_dir={tmp_path / 'out'}"]
    with pytest.raises(SystemExit, match=r"error: prompt_sampler=object_aware .*detector must not be null"):
        evaluate_here("dataset=coco", given[0], *without)
    with pytest.raises(SystemExit, match=r"error: dataset\.limit must be .*, got 'abc'"):
        evaluate_here("dataset=coco", "dataset.limit=abc", *given, f"output_dir={tmp_path / 'out'}")


def test_the_table_names_tests_that_exist() -> None:
    table = (ROOT / "docs" / "robustness.md").read_text()
    sources = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    named = re.findall(r"`(test_\w+)`", table)
    assert len(named) > 80
    assert [name for name in named if f"def {name}(" not in sources] == []
    robustness = "".join(path.read_text() for path in sorted((ROOT / "tests" / "robustness").glob("test_*.py")))
    own = set(re.findall(r"^def (test_\w+)", robustness, re.MULTILINE)) - {"test_the_table_names_tests_that_exist"}
    assert own <= set(named), own - set(named)
