"""Low-rank updates (LoRA) of linear layers, which are trained in place of their weights and merged into them.

Not peft: the mask decoder and the attention of ViTs read ``layer.weight``, which peft's layers answer with the weight
before the update, so that what is trained is not what is merged. A parametrization of torch is the weight that every
reader gets.
"""

from __future__ import annotations

import copy
import math
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class LowRankUpdate(nn.Module):
    """A frozen weight (out, in) plus the product of two trained matrices.

    Args:
        out_features: rows of the weight.
        in_features: columns of the weight.
        rank: of the update.
        alpha: the update is scaled by alpha / rank.

    Source: LoRA, section 4.1: the first factor is random, the second zero.
    """

    def __init__(self, out_features: int, in_features: int, rank: int, alpha: float) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(rank, in_features))
        self.up = nn.Parameter(torch.zeros(out_features, rank))
        self.scale = alpha / rank
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the updated weight."""
        return weight + self.scale * (self.up @ self.down)


def add_low_rank(module: nn.Module, rank: int, alpha: float) -> int:
    """Freeze a module, give each linear layer in it a trainable low-rank update, and return the number of layers."""
    module.requires_grad_(False)
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    for layer in layers:
        update = LowRankUpdate(layer.out_features, layer.in_features, rank, alpha).to(layer.weight.device)
        parametrize.register_parametrization(layer, "weight", update)
    return len(layers)


def merge_low_rank(module: ModuleT) -> ModuleT:
    """Return a copy of a module with its low-rank updates added to the weights; the module itself if it has none."""
    if not any(isinstance(part, LowRankUpdate) for part in module.modules()):
        return module
    merged = copy.deepcopy(module)
    for parent in list(merged.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.Linear) and parametrize.is_parametrized(layer, "weight"):
                setattr(parent, name, _plain(layer))
    return merged


def _plain(layer: nn.Linear) -> nn.Linear:
    """Return a layer with the updated weight of another; torch's own removal would break the layers it was copied from.

    A copy shares its class with the original, and ``remove_parametrizations`` changes the class.
    """
    weight, bias = layer.weight.detach(), layer.bias
    plain = nn.Linear(layer.in_features, layer.out_features, bias is not None, device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        plain.weight.copy_(weight)
        if bias is not None:
            plain.bias.copy_(bias)
    return plain.train(layer.training)
