"""Folding of batch norms into the convolutions before them: the same outputs with fewer passes over memory."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fold_batch_norms(encoder: nn.Module, image_size: int) -> None:
    """Fold each batch norm that follows a convolution into it, in place; the encoder is then for inference only.

    The pairs are found by running the encoder on the meta device, without data, so that this works for any backbone.

    Args:
        encoder: an image encoder in eval mode.
        image_size: S, pixels.

    Raises:
        ValueError: if the encoder is in training mode, where batch norms use the statistics of the batch.
    """
    if encoder.training:
        raise ValueError(
            "encoder must be in eval mode to fold batch norms, got training mode: call encoder.eval() first."
        )
    if not any(isinstance(module, nn.BatchNorm2d) for module in encoder.modules()):
        return
    for conv_name, norm_name in _conv_norm_pairs(encoder, image_size):
        conv: Any = encoder.get_submodule(conv_name)
        norm: Any = encoder.get_submodule(norm_name)
        encoder.set_submodule(conv_name, fuse_conv_bn_eval(conv, norm))
        # timm's batch norms may include dropout and activation
        remainder = nn.Sequential(norm.drop, norm.act) if hasattr(norm, "act") else nn.Identity()
        encoder.set_submodule(norm_name, remainder)


def _conv_norm_pairs(encoder: nn.Module, image_size: int) -> list[tuple[str, str]]:
    """Return the names of each convolution that is called once and of the batch norm that alone reads its output."""
    probe = copy.deepcopy(encoder).to("meta")
    producers: dict[int, str] = {}
    outputs: list[Tensor] = []  # kept alive, since ids are unique only among live objects
    calls: dict[str, int] = {}
    consumers: dict[str, list[str]] = {}

    def record_call(name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        calls[name] = calls.get(name, 0) + 1
        producer = producers.get(id(inputs[0])) if inputs and isinstance(inputs[0], Tensor) else None
        if producer is not None and (isinstance(module, nn.BatchNorm2d) or not any(module.children())):
            consumers.setdefault(producer, []).append(name)
        if isinstance(module, nn.Conv2d):
            outputs.append(output)
            producers[id(output)] = name

    for name, module in probe.named_modules():
        module.register_forward_hook(lambda m, i, o, name=name: record_call(name, m, i, o))
    with torch.no_grad():
        probe(torch.zeros(1, 3, image_size, image_size, device="meta"))
    return [
        (conv, norms[0])
        for conv, norms in consumers.items()
        if len(norms) == 1
        and isinstance(probe.get_submodule(norms[0]), nn.BatchNorm2d)
        and calls[conv] == calls[norms[0]] == 1
    ]
