"""Weights of PlainSAM as they are published."""

from pathlib import Path

import torch

from mobilesamv2 import build_sam, load_pretrained


def test_published_names_load(tmp_path: Path) -> None:
    """Rename our keys to the publisher's, and load the file."""
    ours = build_sam("plain_sam").state_dict()
    published = {key.replace("backbone.trunk.", "stem."): value for key, value in ours.items()}
    torch.save(published, tmp_path / "plain_sam.pt")
    loaded = load_pretrained("plain_sam", tmp_path).state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in ours.items())
