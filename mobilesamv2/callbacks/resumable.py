"""What is checked of a checkpoint before a run resumes from it."""

from __future__ import annotations

import zipfile
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch

from mobilesamv2.files import check_archive


class Resumable(NamedTuple):
    """What a checkpoint says of the run that resumes from it.

    Attributes:
        steps: optimizer steps that are done.
        validates_first: the validation that follows the last of them is yet to come.
    """

    steps: int
    validates_first: bool


PARTS: dict[str, type] = {
    "state_dict": dict,
    "global_step": int,
    "loops": dict,
    "callbacks": dict,
    "optimizer_states": list,
    "lr_schedulers": list,
}
"""What the checkpoint of a training run has, beside more."""

USE = "resume takes a .ckpt that a run wrote, and model.checkpoint and detector.checkpoint take weights"

WAY_OUT = "resume=null starts over, and another output_dir leaves this run as it is."


def require_resumable(path: Path, task: pl.LightningModule, max_steps: int | None) -> Resumable:
    """Check that a checkpoint is whole, of the model that a task trains, and not beyond the end of the run.

    Args:
        path: of the checkpoint.
        task: that would load it.
        max_steps: optimizer steps of the run; None for no limit.

    Raises:
        ValueError: if the checkpoint can't be read, is damaged, lacks a part or a weight, has a weight or a state of
            the optimizer in another shape, or has more steps.
    """
    checkpoint = _read(path)
    steps = checkpoint["global_step"]
    if max_steps is not None and max_steps < steps:
        raise ValueError(
            f"trainer.max_epochs and max_steps must be at least what was trained: {steps} steps are in {path}, the run "
            f"would have {max_steps}; {WAY_OUT}"
        )
    _check_weights(path, checkpoint, task)
    _check_optimizer(path, checkpoint, task)
    validation = checkpoint["loops"].get("fit_loop", {}).get("epoch_loop.val_loop.batch_progress", {}).get("total", {})
    return Resumable(steps, validation.get("started", 0) > validation.get("processed", 0))


def steps_of(path: Path) -> int | None:
    """Return the optimizer steps that a checkpoint has; None for a file that can't be read or does not say."""
    try:
        checkpoint = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        return int(checkpoint["global_step"])
    except Exception:  # a damaged file raises any of a dozen types
        return None


def _read(path: Path) -> dict[str, Any]:
    """Return the checkpoint of a training run, read without executing anything in it."""
    try:
        if path.is_file() and not zipfile.is_zipfile(path):
            raise ValueError(f"it is cut off, or no checkpoint of a training run; {USE}")
        check_archive(path)
        checkpoint = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # a damaged file raises any of a dozen types, as in checkpoints.py
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"The checkpoint {path} can't be read: {reason.rstrip('.')}. {WAY_OUT}") from error
    known = checkpoint if isinstance(checkpoint, dict) else {}
    missing = [name for name, kind in PARTS.items() if not isinstance(known.get(name), kind)]
    if missing:
        raise ValueError(f"{path} is no checkpoint of a training run, it has no {', '.join(missing)}; {USE}.")
    return known


def _check_weights(path: Path, checkpoint: dict[str, Any], task: pl.LightningModule) -> None:
    theirs = {key: tuple(getattr(value, "shape", ())) for key, value in checkpoint["state_dict"].items()}
    ours = {key: tuple(value.shape) for key, value in task.state_dict().items()}
    for problem, keys in (("missing", ours.keys() - theirs.keys()), ("unexpected", theirs.keys() - ours.keys())):
        if keys:
            raise ValueError(f"{path} is of another model, {problem} key(s): {min(keys)}. {WAY_OUT}")
    for key, shape in ours.items():
        if theirs[key] != shape:
            raise ValueError(
                f"{path} is of another model, size mismatch for {key}: {theirs[key]} in the checkpoint, "
                f"{shape} in the model. {WAY_OUT}"
            )


def _check_optimizer(path: Path, checkpoint: dict[str, Any], task: pl.LightningModule) -> None:
    """Check the shapes of the moments, which torch itself finds wrong amid the first step only."""
    trained = Counter(tuple(parameter.shape) for parameter in task.parameters() if parameter.requires_grad)
    for name in ("exp_avg", "exp_avg_sq", "momentum_buffer"):
        try:
            states = [state for optimizer in checkpoint["optimizer_states"] for state in optimizer["state"].values()]
            kept = Counter(tuple(state[name].shape) for state in states if state.get(name) is not None)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"The optimizer's state in {path} is damaged. {WAY_OUT}") from error
        if kept - trained:
            raise ValueError(
                f"The optimizer's state in {path} is of other parameters: {name} of the shape {min(kept - trained)}. "
                f"{WAY_OUT}"
            )
