"""Random weights under which nothing is hidden: no zeros, no identities, and SAM's filters keep some masks."""

import torch
from torch import nn


@torch.no_grad()
def stir(module: nn.Module, seed: int) -> None:
    """Moves every parameter and every running statistic away from its initial value, in the order of their names."""
    generator = torch.Generator().manual_seed(seed)

    def noise(tensor: torch.Tensor) -> torch.Tensor:
        return torch.randn(tensor.shape, generator=generator)

    for name, parameter in sorted(module.named_parameters()):
        scale = 0.5 if name.endswith("attention_biases") else 0.05 if parameter.ndim < 2 else 0.02
        parameter.add_(scale * noise(parameter))
    for name, buffer in sorted(module.named_buffers()):
        if name.endswith("running_mean"):
            buffer.add_(0.1 * noise(buffer))
        elif name.endswith("running_var"):
            buffer.mul_(0.75 + 0.5 * torch.rand(buffer.shape, generator=generator))


@torch.no_grad()
def pass_filters(mask_decoder: nn.Module, logit_scale: float = 150.0, iou_scale: float = 4.0) -> None:
    """Steepens the logits and lifts the predicted IoU into the range that trained weights give."""
    for mlp in mask_decoder.output_hypernetworks_mlps:
        for parameter in mlp.layers[-1].parameters():
            parameter.mul_(logit_scale)
    last = mask_decoder.iou_prediction_head.layers[-1]
    last.weight.mul_(iou_scale)
    last.bias.fill_(0.88)
