"""BatchNorm over all processes, for models of timm and ultralytics too."""

from __future__ import annotations

from itertools import chain
from typing import Any

from pytorch_lightning.plugins.layer_sync import TorchSyncBatchNorm
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


class SyncBatchNorms(TorchSyncBatchNorm):
    """Lightning's, but that timm's norms keep their activations, and that what comes back is what was there.

    torch's own conversion takes a ``BatchNormAct2d`` for a norm alone; and Lightning leaves a class of its own behind,
    which a pickled detector can't be loaded with.
    """

    def __init__(self) -> None:
        super().__init__()
        self._kinds: dict[str, type[nn.Module]] = {}

    def apply(self, model: Any) -> Any:
        """Every BatchNorm of a module becomes one over all processes."""
        self._kinds = {name: type(norm) for name, norm in model.named_modules() if isinstance(norm, _BatchNorm)}
        return convert_sync_batchnorm(model)

    def revert(self, model: Any) -> Any:
        """The way back, with the weights as they are now."""
        for name, kind in self._kinds.items():
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, _as(kind, model.get_submodule(name)))
        return model


def _as(kind: Any, norm: Any) -> nn.Module:
    """A norm of another class with the weights, statistics and mode of one."""
    plain = kind(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    if isinstance(plain, BatchNormAct2d):
        plain.act, plain.drop = norm.act, norm.drop
    plain.to(next(chain(norm.parameters(), norm.buffers())).device).load_state_dict(norm.state_dict())
    return plain.train(norm.training)
