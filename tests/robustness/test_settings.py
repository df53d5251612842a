"""Settings that make no sense, and the table in docs/robustness.md."""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from omegaconf import DictConfig, ListConfig, OmegaConf, ValidationError
from support import ROOT
from support.corrupt_inputs import RESULTS, coco_content
from support.runs import composed, evaluate_here

from mobilesamv2.data.augment import Augmentation
from mobilesamv2.prompts import Grid, Hierarchical
from mobilesamv2.recipes import schema
from mobilesamv2.recipes.segment_everything import OPTIONS

TASKS = {"train": [], "evaluate": []}
for path in sorted(schema.CONF.glob("task/*.yaml")):
    TASKS["evaluate" if path.stem.startswith("evaluate") else "train"].append(path.stem)


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


CHOICES = [
    *((primary, f"task={task}") for primary, tasks in TASKS.items() for task in tasks),
    *(("evaluate", f"prompt_sampler={path.stem}") for path in sorted(schema.CONF.glob("prompt_sampler/*.yaml"))),
    *(("evaluate", f"dataset={path.stem} dataset.limit=1") for path in sorted(schema.CONF.glob("dataset/*.yaml"))),
]


def numbers(node: DictConfig, prefix: str = "") -> Iterator[str]:
    """Dotted names of the numbers of a configuration, and of its lists of numbers."""
    for key in (str(key) for key in node if not OmegaConf.is_missing(node, key)):
        value = node[key]
        if isinstance(value, DictConfig):
            yield from numbers(value, f"{prefix}{key}.")
        elif type(value[0] if isinstance(value, ListConfig) and value else value) in (int, float):
            yield f"{prefix}{key}"


@pytest.mark.parametrize(("primary", "choice"), CHOICES, ids=lambda value: str(value))
def test_every_number_of_every_config_has_a_range(primary: str, choice: str) -> None:
    cfg = composed(*choice.split(), primary=primary)
    options = schema.find_recipe(cfg, "build" if primary == "train" else "evaluate", primary).OPTIONS
    schema.require_settings(cfg, [], options)
    names = list(numbers(cfg))
    assert len(names) > 8
    for name in names:
        for junk in (math.nan, math.inf, -math.inf, -7, 10**400, {"a": 1}):
            value = [junk] * len(old) if isinstance(old := OmegaConf.select(cfg, name), ListConfig) else junk
            spoilt = cfg.copy()
            try:
                OmegaConf.update(spoilt, name, value, merge=False)
            except (
                ValidationError,
                OverflowError,
            ):  # of a key of the program itself, whose type Hydra refuses with its name
                continue
            if name == "samples.mask_stride" and junk == -7:  # one of three numbers, as its class says
                continue
            with pytest.raises(ValueError, match=rf"^{re.escape(name)} must (each )?be .*, got "):
                schema.require_settings(spoilt, [], options)


@pytest.mark.parametrize(
    ("primary", "override", "said"),
    [
        ("train", "optimizer.lr={a:1}", "optimizer.lr must be float for AdamW, got {'a': 1}."),
        ("train", "max_broken=nan", "max_broken must be between 0 and 1, got nan."),
        ("train", "ema=nan", "ema must be at least 0 and below 1, got nan."),
        ("train", "ema=1", "ema must be at least 0 and below 1, got 1.0."),
        ("train", "checkpoint_minutes=-.5", "checkpoint_minutes must be above 0 and at most 525600, got -0.5."),
        ("train", "trainer.gradient_clip_val=-1", "trainer.gradient_clip_val must be at least 0, got -1."),
        ("train", "trainer.max_epochs=null", "trainer.max_epochs must be int for Trainer, got null."),
        ("train", "+trainer.limit_val_batches=1.5", "trainer.limit_val_batches must be between 0 and 1, got 1.5."),
        ("train", "optimizer.lr=inf", "optimizer.lr must be at least 0 and finite, got inf."),
        ("train", "+optimizer.betas=[.9,1.]", "optimizer.betas must each be at least 0 and below 1, got [0.9, 1.0]."),
        ("train", "+cache.shard_size=0", "cache.shard_size must be at least 1, got 0."),
        ("train", "task=detect samples.augmentation.flip=2", "samples.augmentation.flip must be between 0 and 1, got"),
        ("evaluate", "batch_size=0", "batch_size must be at least 1, got 0."),
        ("evaluate", "num_workers=-1", "num_workers must be at least 0, got -1."),
        ("evaluate", "task.metric.ks=[10,0]", "task.metric.ks must each be at least 1, got [10, 0]."),
        ("evaluate", "task=evaluate_boxes task.max_boxes=0", "task.max_boxes must be at least 1, got 0."),
    ],
)
def test_a_number_out_of_its_range_is_a_sentence(primary: str, override: str, said: str) -> None:
    cfg = composed(*override.split(), primary=primary)
    options = schema.find_recipe(cfg, "build" if primary == "train" else "evaluate", primary).OPTIONS
    with pytest.raises(ValueError, match=f"^{re.escape(said)}"):
        schema.require_settings(cfg, [], options)


def test_a_class_checks_its_own_ranges() -> None:
    for name, value in (("pred_iou_thresh", math.nan), ("crop_n_points_downscale_factor", math.inf)):
        with pytest.raises(ValueError, match=f"^{name} must be .*, got {value}"):
            Grid(**{name: value})
    with pytest.raises(ValueError, match=r"^coarse_stride must be at least 2, got 1\."):
        Hierarchical(coarse_stride=1)
    with pytest.raises(ValueError, match=r"^samples\.augmentation\.hue must be between 0 and 1, got nan"):
        Augmentation(hue=math.nan)


@pytest.mark.parametrize(
    "override",
    ["prompt_sampler.pred_iou_thresh=1", "model.checkpoint=[a,b]", "trainer.devices=2", "trainer.devices=[0,1]"],
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
    other = ["prompt_sampler=prompt_head", f"output_dir={tmp_path / 'out'}"]  # its default detector is a YOLO
    with pytest.raises(SystemExit, match=r"error: prompt_sampler=prompt_head takes a prompt head.*mini_prompt_head"):
        evaluate_here("dataset=coco", given[0], *other)
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
