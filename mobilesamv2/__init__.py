"""MobileSAMv2: train, distil and evaluate small segment-anything models.

``SegEvery.from_pretrained("mini_conv")(image)`` returns the masks of everything in an image, RGB uint8 (H, W, 3);
``SegAny.from_pretrained("mini_conv")`` those of points and boxes. ``list_models(pretrained=True)`` lists the models
with weights, which ``load_pretrained`` loads by name; ``build_sam`` builds any model of ``list_models()``, with a file
of one's own or random weights.

The public names are imported when they are first used (PEP 562), so that ``mobilesamv2 --help`` need not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mobilesamv2.models.registration import register_encoder
    from mobilesamv2.pretrained import load_pretrained, push_to_hub, save_pretrained
    from mobilesamv2.registry import build_sam, list_models, load_sam
    from mobilesamv2.segany import SegAny
    from mobilesamv2.segevery import SegEvery

__all__ = [
    "SegAny",
    "SegEvery",
    "build_sam",
    "list_models",
    "load_pretrained",
    "load_sam",
    "push_to_hub",
    "register_encoder",
    "save_pretrained",
]

_MODULES = {
    "SegAny": "segany",
    "SegEvery": "segevery",
    "build_sam": "registry",
    "list_models": "registry",
    "load_pretrained": "pretrained",
    "load_sam": "registry",
    "push_to_hub": "pretrained",
    "register_encoder": "models.registration",
    "save_pretrained": "pretrained",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names before they are imported too."""
    return sorted({*globals(), *__all__})
