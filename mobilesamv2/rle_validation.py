"""Validation of compressed RLE counts, for many masks at once, before pycocotools reads them.

pycocotools reads past its memory, or never returns, on counts whose runs do not add up to the size of the mask.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MAX_GROUPS = 7
"""Groups of five bits per run: 35 bits exceed any run length, and sums of runs fit into int64."""


def counts_are_valid(counts: Sequence[str | bytes], num_pixels: int) -> bool:
    """Check that the run lengths of compressed RLEs are non-negative and add up to the number of pixels.

    Each run is written in groups of five bits, the lowest first, with one more bit that is set if further groups
    follow. From the fourth run on it is the difference to the run before the last. The vectorised check handles all
    masks of an image in one pass.

    Args:
        counts: the ``counts`` field of each RLE.
        num_pixels: H * W of each mask.

    Source: pycocotools' rleFrString.
    """
    texts = [text if isinstance(text, bytes) else text.encode() for text in counts]
    if not all(texts):
        return False
    if not texts:
        return True
    groups = np.frombuffer(b"".join(texts), dtype=np.uint8) - np.uint8(48)  # below 48 wraps to above 63
    text_ends = np.cumsum([len(text) for text in texts])
    is_last = (groups & 0x20) == 0
    if groups.max() > 63 or not is_last[text_ends - 1].all():
        return False
    ends = np.flatnonzero(is_last) + 1
    starts = np.concatenate([[0], ends[:-1]])
    num_groups = ends - starts
    if num_groups.max() > MAX_GROUPS:
        return False
    low_bits = (groups & 0x1F).astype(np.int64)
    values = low_bits[starts]
    for k in range(1, int(num_groups.max())):
        longer = np.flatnonzero(num_groups > k)
        values[longer] += low_bits[starts[longer] + k] << (5 * k)
    values -= ((groups[ends - 1] & 0x10) > 0) * (np.int64(1) << (5 * num_groups))  # sign
    first_run = np.concatenate([[0], np.searchsorted(ends, text_ends[:-1], side="right")])  # of each text
    return _runs_add_up(values, first_run, num_pixels)


def _runs_add_up(values: np.ndarray, first_run: np.ndarray, num_pixels: int) -> bool:
    """Undo the differences of all texts' runs, and check that runs are non-negative and add up."""
    num_runs = np.diff(np.append(first_run, len(values)))
    slots = (num_runs + 1) // 2 * 2  # an even number per text, so that odd runs have odd indices in every text
    begin = np.concatenate([[0], np.cumsum(slots)[:-1]])
    padded = np.zeros(int(slots.sum()), dtype=np.int64)
    padded[np.arange(len(values)) + np.repeat(begin - first_run, num_runs)] = values
    initial = padded[begin]
    padded[begin] = 0  # the first run is in no sum; the later even runs, and the odd ones, are cumulative sums
    last = np.append(begin[1:], len(padded)) // 2 - 1
    totals = initial.copy()
    for parity in (0, 1):
        cumulative = np.cumsum(padded[parity::2])
        before = np.concatenate([[0], cumulative[last[:-1]]])
        runs = cumulative - np.repeat(before, slots // 2)
        is_filler = (num_runs % 2 == 1) & (parity == 1)  # the last slot of a text with an odd number of runs
        runs[last[is_filler]] = 0
        if (runs < 0).any():
            return False
        totals += np.add.reduceat(runs, begin // 2)
    return bool((initial >= 0).all() and (totals == num_pixels).all())
