"""Synchronised BatchNorm, over all processes, for models of timm and ultralytics too."""

from __future__ import annotations

from itertools import chain
from typing import Any

from pytorch_lightning.plugins.layer_sync import TorchSyncBatchNorm
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from typing_extensions import override


class SyncBatchNorms(TorchSyncBatchNorm):
    """Lightning's plugin, except that timm's norms keep their activations, and that reverting restores the classes.

    torch's own conversion treats a ``BatchNormAct2d`` as a plain norm; and Lightning leaves a class of its own behind,
    with which a pickled detector can't be loaded.
    """

    def __init__(self) -> None:
        super().__init__()
        self._original_types: dict[str, type[nn.Module]] = {}

    @override
    def apply(self, model: Any) -> Any:
        norms = {name: norm for name, norm in model.named_modules() if isinstance(norm, _BatchNorm)}
        self._original_types = {name: type(norm) for name, norm in norms.items()}
        return convert_sync_batchnorm(model)

    @override
    def revert(self, model: Any) -> Any:
        for name, norm_type in self._original_types.items():
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, _as(norm_type, model.get_submodule(name)))
        return model


def _as(norm_type: Any, norm: Any) -> nn.Module:
    """Return a norm of another class with the weights, statistics and mode of a given one."""
    converted = norm_type(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    if isinstance(converted, BatchNormAct2d):
        converted.act, converted.drop = norm.act, norm.drop
    converted.to(next(chain(norm.parameters(), norm.buffers())).device).load_state_dict(norm.state_dict())
    return converted.train(norm.training)
