"""Batch norms folded into the convolutions before them: the same outputs, fewer passes over memory."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fold_batch_norms(encoder: nn.Module, image_size: int) -> None:
    """Folds each batch norm that follows a convolution into it, in place; the encoder then serves inference alone.

    Which batch norm follows which convolution is seen by running the encoder without data, so that this works for any
    backbone.

    Args:
        encoder: an image encoder in eval mode.
        image_size: S, pixels.

    Raises:
        ValueError: the encoder is in training mode, where batch norms follow the batch.
    """
    if encoder.training:
        raise ValueError("Batch norms are folded for inference: call encoder.eval() first.")
    if not any(isinstance(module, nn.BatchNorm2d) for module in encoder.modules()):
        return
    for conv_name, norm_name in _pairs(encoder, image_size):
        conv: Any = encoder.get_submodule(conv_name)
        norm: Any = encoder.get_submodule(norm_name)
        encoder.set_submodule(conv_name, fuse_conv_bn_eval(conv, norm))
        # timm's batch norms may drop and activate too
        rest = nn.Sequential(norm.drop, norm.act) if hasattr(norm, "act") else nn.Identity()
        encoder.set_submodule(norm_name, rest)


def _pairs(encoder: nn.Module, image_size: int) -> list[tuple[str, str]]:
    """Names of each convolution that is called once, and of the batch norm that takes what it gives."""
    probe = copy.deepcopy(encoder).to("meta")
    made_by: dict[int, str] = {}
    alive: list[Tensor] = []  # an id is an object's own only while it lives
    calls: dict[str, int] = {}
    takers: dict[str, list[str]] = {}

    def called(name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        calls[name] = calls.get(name, 0) + 1
        source = made_by.get(id(inputs[0])) if inputs and isinstance(inputs[0], Tensor) else None
        if source is not None and (isinstance(module, nn.BatchNorm2d) or not any(module.children())):
            takers.setdefault(source, []).append(name)
        if isinstance(module, nn.Conv2d):
            alive.append(output)
            made_by[id(output)] = name

    for name, module in probe.named_modules():
        module.register_forward_hook(lambda m, i, o, name=name: called(name, m, i, o))
    with torch.no_grad():
        probe(torch.zeros(1, 3, image_size, image_size, device="meta"))
    return [
        (conv, norms[0])
        for conv, norms in takers.items()
        if len(norms) == 1
        and isinstance(probe.get_submodule(norms[0]), nn.BatchNorm2d)
        and calls[conv] == calls[norms[0]] == 1
    ]
