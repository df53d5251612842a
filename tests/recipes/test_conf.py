"""conf/: every file is reached, and every node binds to the signature of what it builds."""

import inspect
import os
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException, MissingConfigException
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from support import ROOT
from support.runs import composed

from mobilesamv2.recipes import schema

schema.register()
CONF = ROOT / "conf"
GROUPS = sorted(p.name for p in CONF.iterdir() if p.is_dir() and p.name != "hydra")
FILES = sorted(p.relative_to(CONF) for p in CONF.rglob("*.yaml") if p.parts[-3] != "hydra")
# What evaluate.py and train.py hand in beside the node's own keys.
WIRED = {
    "mobilesamv2.build_sam": {"encoder"},
    "mobilesamv2.evaluation.segment_everything.EvaluateSegEvery": {"segevery", "metric", "shards"},
    "mobilesamv2.evaluation.segment_everything.EvaluateFastSam": {"detector", "metric", "shards"},
    "mobilesamv2.evaluation.prompts.EvaluatePrompts": {"sam", "teacher", "shards", "seed"},
    "mobilesamv2.evaluation.clicks.EvaluateClicks": {"sam", "shards", "seed"},
    "mobilesamv2.evaluation.detector.EvaluateDetector": {"detector", "shards"},
    "mobilesamv2.evaluation.boxes.EvaluateBoxes": {"sam", "boxes", "shards"},
    "mobilesamv2.data.embeddings.EmbeddingCache": {"identity"},
    "mobilesamv2.tasks.teacher.CacheTeacher": {"teacher"},
    "mobilesamv2.tasks.distill.DistillDecoupled": {"student", "teacher", "optimizer"},
    "mobilesamv2.tasks.distill_masks.DistillMasks": {"student", "teacher", "optimizer"},
    "mobilesamv2.tasks.distill_full_stage.DistillFullStage": {"student", "teacher", "optimizer"},
    "mobilesamv2.tasks.train_prompted_masks.TrainPromptedMasks": {"sam", "optimizer"},
    "mobilesamv2.tasks.detect.DetectObjects": {"detector", "optimizer"},
    "mobilesamv2.tasks.train_prompt_head.TrainPromptHead": {"head", "teacher", "optimizer"},
    "mobilesamv2.prompt_heads.build_prompt_head": {"sam"},
    "mobilesamv2.data.box_samples.BoxSamples": {"images", "image_size"},
    "torch.optim.AdamW": {"params"},
    "mobilesamv2.callbacks.csv_log.ResumableCSVLogger": {"save_dir"},
    "pytorch_lightning.loggers.TensorBoardLogger": {"save_dir"},
    **{f"mobilesamv2.data.samples.{kind}Samples": {"images", "image_size"} for kind in ("Encoder", "Prompt")},
    "mobilesamv2.data.detection_samples.DetectionSamples": {"images", "image_size"},
}


def primary_of(path: Path) -> str:
    """Return which program reads a file."""
    if path.stem.startswith("evaluate"):
        return "evaluate"
    if path.stem.startswith("ablation"):
        return "train" if "python train.py" in (CONF / path).read_text() else "evaluate"
    trains = path.parent.name in ("experiment", "task", "optimizer", "logger") or path.stem in (
        "sa1b",
        "synthetic",
        "train",
    )
    return "train" if trains else "evaluate"


def check_targets(node: Any, options: Iterable[str] = ()) -> int:
    """Bind each node with a _target_ to its signature, but for the options that a recipe reads, and count them."""
    if not isinstance(node, DictConfig):
        return 0
    recipe = node.get("recipe")
    of_task = import_module(f"mobilesamv2.recipes.{recipe}").OPTIONS if recipe else ()
    count = sum(check_targets(value, of_task if key == "task" else ()) for key, value in node.items())
    if "_target_" in node:
        # train.py takes from a teacher what says how its embeddings are computed and kept, and from a cache the pixels
        left_out = (
            {"cache", "precision", "levels"} if "cache" in node else {"pixels"} if "pixels" in node else set(options)
        )
        arguments = {key: None for key in node if not str(key).startswith("_") and key not in left_out}
        signature = inspect.signature(get_object(node["_target_"]))
        takes_detector = ".prompts." in node["_target_"] and "detector" in signature.parameters
        arguments |= dict.fromkeys({"detector"} if takes_detector else WIRED.get(node["_target_"], ()))
        signature.bind(**arguments)
        count += 1
    return count


def override(path: Path) -> str:
    extra = {"model/by_name.yaml": " model.name=mini", "detector/by_name.yaml": " detector.architecture=yolov8n"}.get(
        str(path), ""
    )
    return f"{path.parent}={path.stem}{extra}"


@pytest.mark.parametrize("path", [p for p in FILES if len(p.parts) > 1], ids=str)
def test_every_yaml_composes_and_binds(path: Path) -> None:
    cfg = composed(*override(path).split(), f"output_dir={path.parent}", primary=primary_of(path))
    OmegaConf.resolve(cfg)
    assert check_targets(cfg) >= 4


@pytest.mark.parametrize("path", sorted(CONF.glob("experiment/*.yaml")), ids=lambda p: p.stem)
def test_experiments_say_how_long_they_take_and_what_they_give(path: Path) -> None:
    text = path.read_text()
    for word in (f"experiment={path.stem}", "Hardware:", "Should give:"):
        assert word in text
    composed(f"experiment={path.stem}", "model=mini", primary=primary_of(path))


def head_of(experiment: str) -> str:
    """Return the comments that an experiment opens with."""
    return (CONF / "experiment" / f"{experiment}.yaml").read_text().split("\ndefaults:")[0]


@pytest.mark.parametrize(
    "name", sorted(p.stem for kind in ("distill", "pretrain") for p in CONF.glob(f"experiment/{kind}_*.yaml"))
)
def test_distillation_and_pretraining_say_what_they_start_from(name: str) -> None:
    starts = [line for line in head_of(name).splitlines() if line.startswith("# Starts from: ")]
    assert len(starts) == 1
    downloads = "\n  backbone_checkpoint: timm\n" in (CONF / "experiment" / f"{name}.yaml").read_text()
    assert downloads == starts[0].startswith("# Starts from: timm's")


@pytest.mark.parametrize(
    "name",
    ["edgesam", "edgesam_prompts", "efficientsam3", "efficientvit_l0", "efficientvit_l1", "efficientvit_l2", "tinysam"],
)
def test_the_peers_recipes_name_their_source(name: str) -> None:
    assert "\n# Source: " in head_of(f"distill_{name}")


@pytest.mark.parametrize("path", sorted(CONF.glob("experiment/ablation_*.yaml")), ids=lambda p: p.stem)
def test_every_value_of_an_ablation_composes_and_binds(path: Path) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        hydra = compose(primary_of(path), [f"experiment={path.stem}"], return_hydra_config=True).hydra
    assert str(hydra.mode) == "RunMode.MULTIRUN"
    for key, values in hydra.sweeper.params.items():
        assert "," in values
        for value in values.split(","):
            cfg = composed(f"experiment={path.stem}", f"{key}={value}", "output_dir=x", primary=primary_of(path))
            OmegaConf.resolve(cfg)
            assert check_targets(cfg) >= 4


@pytest.mark.parametrize("primary", ["evaluate", "train"])
def test_every_group_is_in_the_primary_config(primary: str) -> None:
    text = (CONF / f"{primary}.yaml").read_text()
    elsewhere = {"evaluate": "optimizer", "train": "protocol"}[primary]
    assert [g for g in GROUPS if f"- {g}:" not in text and g != elsewhere] == []


@pytest.mark.parametrize("primary", ["evaluate", "train"])
def test_the_launcher_binds_and_jobs_find_the_programs_modules(primary: str) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        given = ["hydra/launcher=slurm", "hydra.launcher.partition=gpu"]
        launcher = compose(primary, given, return_hydra_config=True).hydra.launcher
    arguments = {key: launcher._get_node(key) for key in launcher if key != "_target_"}
    bound = inspect.signature(get_object(launcher._target_)).bind(**arguments)
    assert (bound.kwargs["partition"], bound.kwargs["max_num_timeout"]) == ("gpu", 100)
    assert str(ROOT) in os.environ["PYTHONPATH"].split(os.pathsep)


def test_a_mistyped_key_is_named() -> None:
    with pytest.raises(ConfigCompositionException, match="sede"):
        composed("sede=1")
    with pytest.raises(ConfigCompositionException, match="point_per_side"):
        composed("prompt_sampler.point_per_side=1")
    with pytest.raises(MissingConfigException, match="grdi"):
        composed("prompt_sampler=grdi")


def test_a_key_added_to_a_node_does_not_bind() -> None:
    with pytest.raises(TypeError, match="typo"):
        check_targets(composed("+prompt_sampler.typo=1"))


def test_defaults_are_those_of_the_classes() -> None:
    """The yaml of a sampler repeats its defaults; they must not drift apart."""
    for name in (path.stem for path in CONF.glob("prompt_sampler/*.yaml")):
        node = composed(f"prompt_sampler={name}").prompt_sampler
        parameters = inspect.signature(get_object(node["_target_"])).parameters
        assert {k: v for k, v in node.items() if k != "_target_"} == {
            k: p.default for k, p in parameters.items() if k != "detector"
        }
    node = composed("task=evaluate_fastsam").task
    parameters = inspect.signature(get_object(node["_target_"])).parameters
    assert {k: v for k, v in node.items() if k not in ("_target_", "metric", "save_masks")} == {
        k: p.default for k, p in parameters.items() if k not in ("detector", "shards", "metric")
    }
