"""Losses of masks by hand, and what a step that leaves parameters out does to their gradients."""

import pytest
import torch
from torch import nn

from mobilesamv2.tasks.losses import MaskLoss, hard_mask_weights, with_gradient_of_all


def test_cells_that_do_not_count_change_nothing() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(3, 2, 4, 6), torch.randint(2, (3, 2, 4, 6)).float()
    valid = torch.zeros(3, 1, 4, 6, dtype=torch.bool)
    valid[..., :3, :4] = True
    loss = MaskLoss(focal_weight=20.0, dice_weight=1.0, bce_weight=5.0)
    cropped = loss.mask_terms(logits[..., :3, :4], targets[..., :3, :4])
    assert torch.allclose(loss.mask_terms(logits, targets, valid), cropped, atol=1e-6)
    assert not torch.allclose(loss.mask_terms(logits, targets), cropped, atol=1e-2)
    assert loss.mask_terms(logits, targets, torch.zeros_like(valid)).isfinite().all()


def test_hard_masks_weigh_more() -> None:
    student, teacher = torch.tensor([0.5, 0.8, 0.4, 0.0, 0.0]), torch.tensor([0.5, 0.4, 0.8, 0.0, 0.9])
    expected = [0.5, torch.tensor(-0.5).sigmoid(), torch.tensor(1.0).sigmoid(), torch.tensor(-1.0).sigmoid(), 1.0]
    assert hard_mask_weights(student, teacher).tolist() == pytest.approx([float(value) for value in expected], abs=1e-5)


def test_a_part_that_a_step_leaves_out_has_a_gradient_of_zero() -> None:
    parts = nn.ModuleList([nn.Linear(2, 1), nn.Linear(2, 1), nn.Linear(2, 1).requires_grad_(False)])
    loss = parts[0](torch.ones(1, 2)).sum()
    whole = with_gradient_of_all(loss, parts)
    assert whole.item() == loss.item()
    whole.backward()
    assert parts[0].weight.grad.tolist() == [[1.0, 1.0]]
    assert parts[1].weight.grad.tolist() == [[0.0, 0.0]]
    assert parts[2].weight.grad is None
