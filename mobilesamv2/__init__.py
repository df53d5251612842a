"""MobileSAMv2: train, distil and evaluate small segment-anything models."""

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
    "save_pretrained",
]
