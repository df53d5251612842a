"""Cost of an image encoder: parameters and multiply-accumulates."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


class Cost(NamedTuple):
    """Cost of encoding one image.

    Attributes:
        parameters: number of weights.
        macs: number of multiply-accumulates of convolutions, linear layers and attention.
    """

    parameters: int
    macs: int


def encoder_cost(encoder: nn.Module, image_size: int) -> Cost:
    """Count the parameters and multiply-accumulates of an encoder.

    An encoder built under ``torch.device("meta")`` is counted without computing its outputs.

    Args:
        encoder: an image encoder.
        image_size: S, pixels.
    """
    device = next(encoder.parameters()).device
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        encoder(torch.zeros(1, 3, image_size, image_size, device=device))
    return Cost(sum(p.numel() for p in encoder.parameters()), counter.get_total_flops() // 2)
