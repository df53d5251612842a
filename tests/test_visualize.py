"""Overlays of several results on one image: an object has one colour in all of them."""

import numpy as np
import torch

from mobilesamv2.masks import encode
from mobilesamv2.structures import RLE
from mobilesamv2.visualize import overlay, same_objects


def columns(*ranges: tuple[int, int]) -> list[RLE]:
    """Masks of 10 x 100 pixels, from one column to before another."""
    x = torch.arange(100)
    return encode(torch.stack([((x >= start) & (x < end)).expand(10, 100) for start, end in ranges]).transpose(1, 2))


def test_masks_of_one_object_have_the_number_of_the_first() -> None:
    assert same_objects(columns((0, 40), (50, 90), (0, 100), (52, 90), (2, 40))) == [0, 1, 2, 1, 0]
    assert same_objects(columns((0, 40), (0, 36), (0, 32), (0, 28), (0, 24))) == [0, 0, 0, 0, 4]  # the last has IoU .6
    assert same_objects(columns((0, 40), (0, 56), (0, 48))) == [0, 0, 0]
    assert same_objects(columns((0, 40), (0, 60), (0, 52))) == [0, 1, 1]  # IoU .77 with the first, .87 with the second
    assert same_objects([]) == []


def test_an_object_has_one_colour_in_two_overlays() -> None:
    image = np.full((10, 100, 3), 90, dtype=np.uint8)
    first, second = columns((0, 40), (50, 90)), columns((50, 92))
    objects = same_objects(first + second)
    left, right = overlay(image, first, objects=objects[:2]), overlay(image, second, objects=objects[2:])
    inside = np.s_[2:8, 55:85]
    assert (left[inside] == right[inside]).all()
    assert (overlay(image, first)[inside] != overlay(image, second)[inside]).any()  # without the numbers
