"""timm's own models, whatever other packages register."""

import pytest
import timm
import torch

from mobilesamv2 import build_sam


def test_timms_own_models_are_built_whatever_is_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the official MobileSAM was imported first, which registers its own class as tiny_vit_5m_224."""
    from timm.models import _registry

    expected = build_sam("mobile_sam").state_dict().keys()

    def other(**settings: object) -> torch.nn.Module:
        raise AssertionError("another package's model was built")

    for name in ("tiny_vit_5m_224", "repvit_m1", "resnet18"):
        monkeypatch.setitem(_registry._model_entrypoints, name, other)
    with pytest.raises(AssertionError, match="another package's"):
        timm.create_model("tiny_vit_5m_224")
    assert build_sam("mobile_sam").state_dict().keys() == expected
    for name in ("edge_sam", "timm/resnet18"):
        build_sam(name)
