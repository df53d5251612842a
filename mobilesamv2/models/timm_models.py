"""timm's models by name, whatever other packages have registered under it."""

from __future__ import annotations

from typing import Any

import timm
import timm.models


def create_timm_model(variant: str, **settings: Any) -> Any:
    """Build a model as ``timm.create_model`` does, by timm's own constructor where timm has one of this name.

    Packages with models of their own replace timm's entries: once the official MobileSAM is imported,
    ``timm.create_model("tiny_vit_5m_224")`` builds its class, whose weights have other names.

    Args:
        variant: timm's name.
        settings: of the model.
    """
    constructor = getattr(timm.models, variant, None)
    return timm.create_model(variant, **settings) if constructor is None else constructor(**settings)
