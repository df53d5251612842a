"""Measures masks and models: ``python evaluate.py dataset=lvis``. See ``--help`` and the README."""

import quiet  # isort: skip  # noqa: F401

from functools import partial

import hydra
import pytorch_lightning as pl
from omegaconf import DictConfig

import schema
from evaluations import EVALUATIONS
from mobilesamv2.metrics.result_record import write_record
from preflight import (
    dataset_checks,
    environment,
    needs_detector,
    output_folder,
    refuse_half_weights,
    refuse_sweep_of_processes,
    require_all,
    require_file,
    require_shared_folder,
    sentences,
    weight_checks,
    without_noise,
)

schema.register()

SEGMENT_EVERYTHING = ("EvaluateProposals", "EvaluateMasks")
"""Evaluations of a model with a prompt sampler."""

READ_BY = {
    "predictions": {"EvaluateProposals", "predictions"},
    "skip_images_without_results": {"predictions"},
    "save_masks": {*SEGMENT_EVERYTHING, "EvaluatePromptFree"},
    "teacher": {"EvaluatePrompts"},
    "boxes": {"EvaluateBoxes"},
    "max_boxes": {"EvaluateBoxes"},
    "compile": {*SEGMENT_EVERYTHING, "EvaluatePrompts", "EvaluateBoxes"},
    "onnx_encoder": {*SEGMENT_EVERYTHING, "EvaluatePrompts", "EvaluateBoxes"},
}
"""Options that only some evaluations read."""

GROUPS = {
    "predictions": ("dataset",),
    **dict.fromkeys(SEGMENT_EVERYTHING, ("dataset", "model", "prompt_sampler", "trainer")),
    "EvaluatePromptFree": ("dataset", "detector", "trainer"),
    "EvaluatePrompts": ("dataset", "model", "trainer"),
    "EvaluateBoxes": ("dataset", "model", "trainer"),
}
"""Groups of conf/ that each evaluation can't do without."""


@hydra.main(config_path="conf", config_name="evaluate", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Composes, builds, runs, and prints the table."""
    without_noise()
    folder, known = output_folder(cfg), environment(cfg.seed)
    with sentences():
        name = evaluation_name(cfg)
        schema.require_settings(cfg, GROUPS[name])
        if "trainer" in GROUPS[name]:
            refuse_half_weights(cfg)
        require_shared_folder()
        if name in SEGMENT_EVERYTHING and needs_detector(cfg) and cfg.detector is None:
            raise ValueError("prompt_sampler=object_aware asks with a detector's boxes, and detector is null.")
        require_files(cfg, name)
        pl.seed_everything(cfg.seed, workers=True, verbose=False)
        results, table, per_image = EVALUATIONS[name](cfg)
        if pl.utilities.rank_zero_only.rank != 0:  # pyright: ignore
            return
        results["run"] |= known
        written = write_record(results, folder, **per_image)
    print(table)
    print(f"\nwritten: {' and '.join(map(str, written))}")


def evaluation_name(cfg: DictConfig) -> str:
    """The class of the task, or ``predictions`` where a results file takes the place of a model.

    Raises:
        ValueError: no task of this program, or an option that it does not read.
    """
    task = cfg.task._target_.rsplit(".", 1)[1] if cfg.task else None
    if task not in EVALUATIONS:
        tasks = ", ".join(f"task=evaluate_{name}" for name in ("proposals", "prompt_free", "prompts", "boxes"))
        raise ValueError(f"evaluate.py runs {tasks}, and those of a metric; got {task}.")
    name = "predictions" if cfg.predictions and task == "EvaluateProposals" else task
    for option, readers in READ_BY.items():
        if cfg[option] and name not in readers:
            raise ValueError(f"{option} is set, and {name} does not read it; it is of {', '.join(sorted(readers))}.")
    if cfg.batch_size > 1 and name not in SEGMENT_EVERYTHING:
        raise ValueError("batch_size is of task=evaluate_proposals and of metrics; others take an image at a time.")
    if name == "EvaluateBoxes" and not cfg.boxes:
        raise ValueError("task=evaluate_boxes wants a detector's boxes, a COCO-results file: boxes=FILE.")
    if name == "EvaluatePromptFree" and not cfg.detector:
        raise ValueError("task=evaluate_prompt_free wants the network whose masks are counted: detector=fastsam_x.")
    if cfg.compile and cfg.onnx_encoder:
        raise ValueError("compile is of torch, and onnx_encoder runs in its place: set one of the two.")
    refuse_sweep_of_processes(cfg)
    return name


def require_files(cfg: DictConfig, name: str) -> None:
    """Nothing, if every file that the run reads is there; otherwise one error that names all that are missing."""
    checks = dataset_checks(cfg.dataset, with_images=name != "predictions")
    if name == "EvaluatePromptFree":
        checks += weight_checks(cfg.detector)
    elif name != "predictions":
        detector = cfg.detector if name in SEGMENT_EVERYTHING and needs_detector(cfg) else None
        checks += weight_checks(cfg.model, detector, cfg.teacher)
    checks += [partial(require_file, file) for file in (cfg.predictions, cfg.boxes, cfg.onnx_encoder) if file]
    require_all(checks)


if __name__ == "__main__":
    main()
