"""The vectorised check of compressed RLE counts, against a plain loop."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mobilesamv2 import masks
from mobilesamv2.rle_validation import counts_are_valid


def decode_runs(text: str | bytes) -> list[int] | None:
    """Return the run lengths of one compressed RLE, None if it is malformed. Source: pycocotools' rleFrString."""
    characters = list(text.encode() if isinstance(text, str) else text)
    runs: list[int] = []
    while characters:
        value, num_groups, more = 0, 0, True
        while more:
            if not characters or num_groups == 7:
                return None
            group = characters.pop(0) - 48
            if not 0 <= group < 64:
                return None
            value |= (group & 0x1F) << (5 * num_groups)
            num_groups += 1
            more = bool(group & 0x20)
        if group & 0x10:
            value -= 1 << (5 * num_groups)
        runs.append(value + runs[-2] if len(runs) > 2 else value)
    return runs


def counts_are_valid_in_a_loop(counts: list[str | bytes], num_pixels: int) -> bool:
    """Check one text and one run after the other."""
    for text in counts:
        runs = decode_runs(text)
        if not runs or min(runs) < 0 or sum(runs) != num_pixels:
            return False
    return True


def encode_runs(runs: list[int]) -> str:
    """Write run lengths, of any sign, as compressed counts. Source: pycocotools' rleToString."""
    text = ""
    for i, run in enumerate(runs):
        value, more = run - runs[i - 2] if i > 2 else run, True
        while more:
            group = value & 0x1F
            value >>= 5
            more = value != (-1 if group & 0x10 else 0)
            text += chr((group | (0x20 if more else 0)) + 48)
    return text


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(bool, st.tuples(st.integers(1, 4), st.integers(1, 30), st.integers(1, 30))), st.data())
def test_encoded_masks_are_valid_until_a_character_changes(array: np.ndarray, data: st.DataObject) -> None:
    counts = [rle["counts"] for rle in masks.encode(torch.from_numpy(array).transpose(1, 2))]
    num_pixels = array.shape[1] * array.shape[2]
    assert counts_are_valid(counts, num_pixels)
    assert counts_are_valid_in_a_loop(counts, num_pixels)
    assert not counts_are_valid(counts, num_pixels + 1)
    i = data.draw(st.integers(0, len(counts) - 1))
    at = data.draw(st.integers(0, len(counts[i]) - 1))
    counts[i] = counts[i][:at] + chr(data.draw(st.integers(40, 120))) + counts[i][at + 1 :]
    assert counts_are_valid(counts, num_pixels) == counts_are_valid_in_a_loop(counts, num_pixels)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.integers(-3, 60), min_size=1, max_size=7), min_size=1, max_size=4), st.booleans())
def test_runs_of_any_sign_are_checked_as_in_a_loop(all_runs: list[list[int]], same_total: bool) -> None:
    num_pixels = max(sum(runs) for runs in all_runs)
    if same_total:
        all_runs = [[runs[0] + num_pixels - sum(runs), *runs[1:]] for runs in all_runs]
    counts: list[str | bytes] = [encode_runs(runs) for runs in all_runs]
    assert [decode_runs(text) for text in counts] == all_runs
    expected = all(min(runs) >= 0 and sum(runs) == num_pixels for runs in all_runs)
    assert counts_are_valid(counts, num_pixels) == counts_are_valid_in_a_loop(counts, num_pixels) == expected


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=6) | st.text(st.characters(max_codepoint=130), max_size=12), max_size=4))
def test_any_text_is_checked_as_in_a_loop(counts: list[str | bytes]) -> None:
    for num_pixels in (0, 1, 20):
        assert counts_are_valid(counts, num_pixels) == counts_are_valid_in_a_loop(counts, num_pixels)


@pytest.mark.parametrize("counts", ["", "o", "0o", "oooooooooo0", "\x7f"])
def test_malformed_counts_are_invalid(counts: str) -> None:
    assert not counts_are_valid([counts], 0)
    assert not counts_are_valid([counts.encode()], 0)


def test_no_masks_are_valid() -> None:
    assert counts_are_valid([], 5)
