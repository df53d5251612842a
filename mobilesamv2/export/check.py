"""Comparison of exported graphs with torch, on inputs of other sizes than they were traced with."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mobilesamv2.export.graphs import POINTS_OF_ONE_MASK
from mobilesamv2.export.runtime import (
    decoder_inputs,
    labelled_points,
    open_session,
    read_export_metadata,
    require_decoder,
)
from mobilesamv2.models.prompt_encoder import PromptEncoder
from mobilesamv2.models.sam import Sam
from mobilesamv2.structures import PointLabel
from mobilesamv2.transforms import ModelFrame, to_model_input

TOLERANCES = {"fp32": 1e-3, "fp16": 1e-2}
"""Largest accepted difference between a graph and torch in float32, as a share of the largest value."""


class Prompt(NamedTuple):
    """Random arguments of ``Sam.decode``, in pixels of the model's input; (N, ...)."""

    points: Tensor | None
    labels: Tensor | None
    boxes_xyxy: Tensor | None


class DecoderCase(NamedTuple):
    """Numbers of what our decoder is compared on; no mask is a run without mask inputs."""

    num_prompts: int
    num_points: int
    with_boxes: bool
    num_masks: int = 0
    num_images: int = 1


DECODER_CASES = (
    DecoderCase(1, 1, False),
    DecoderCase(7, 3, False),
    DecoderCase(5, 0, True, num_masks=1),
    DecoderCase(3, 2, True, num_masks=3),
    DecoderCase(4, 1, False, num_images=2),
    DecoderCase(8, 0, True, num_masks=4, num_images=2),
)
"""One mask for all prompts and one for each, and several images, among them."""


def check_graphs(
    sam: Sam, encoder: str | Path, decoder: str | Path, *, tolerance: float | None = None, seed: int = 0
) -> dict[str, float]:
    """Compare two graphs with torch on random images and prompts.

    Args:
        sam: the model that was exported.
        encoder: file of its encoder, of any signature and precision.
        decoder: file of its decoder.
        tolerance: largest accepted difference, as a share of the largest value; None is that of the precision.
        seed: seed of the images and prompts.

    Returns:
        Name of each output -> its largest difference, as a share of the largest value.

    Raises:
        FileNotFoundError: if a graph does not exist.
        ImportError: if onnxruntime is not installed.
        ValueError: if a graph can't be read, or a difference is above the tolerance.
    """
    sessions = open_session(encoder), open_session(decoder)
    rng = torch.Generator().manual_seed(seed)
    found: dict[str, float] = {}
    for path, session in zip((encoder, decoder), sessions, strict=True):
        metadata = read_export_metadata(session)
        kind, precision = (metadata.get("part", ""), metadata.get("signature", "")), metadata.get("precision", "")
        if kind not in COMPARISONS or precision not in TOLERANCES:
            raise ValueError(f"{path} does not say which graph it is, as exports of this version do; export it again.")
        compare = COMPARISONS[kind]
        if compare is _compare_decoder:
            require_decoder(session, path)
        limit = TOLERANCES[precision] if tolerance is None else tolerance
        with torch.inference_mode():
            differences = compare(sam, session, limit, rng)
        _require_close(differences, limit, path)
        found |= differences
    return found


def _require_close(differences: dict[str, float], tolerance: float, path: str | Path) -> None:
    # not (a <= b), so that NaN counts as a difference
    exceeding = {name: value for name, value in differences.items() if not value <= tolerance}
    if exceeding:
        details = ", ".join(f"{name} by {value:.1e}" for name, value in exceeding.items())
        raise ValueError(
            f"{path} differs from torch by more than {tolerance:g} of the largest value: {details}. "
            "Try another opset, precision or version of torch; --no-check skips the comparison."
        )


def _compare_encoder(sam: Sam, session: Any, tolerance: float, rng: torch.Generator) -> dict[str, float]:
    images = torch.randn(2, 3, sam.image_size, sam.image_size, generator=rng)
    theirs = session.run(None, {"image": images.numpy()})[0]
    return {"image_embedding": _difference(theirs, sam.image_encoder(images))}


def _compare_pixel_encoder(sam: Sam, session: Any, tolerance: float, rng: torch.Generator) -> dict[str, float]:
    found = []
    for size in ((sam.image_size, sam.image_size // 3), (sam.image_size * 2 // 3, sam.image_size)):
        pixels = torch.randint(0, 256, (*size, 3), generator=rng, dtype=torch.uint8).numpy()
        theirs = session.run(None, {"input_image": pixels.astype(np.float32)})[0]
        found.append(
            _difference(
                theirs, sam.image_encoder(to_model_input(pixels, sam.image_size, sam.pixel_mean, sam.pixel_std))
            )
        )
    return {"image_embeddings": max(found)}


def _compare_decoder(sam: Sam, session: Any, tolerance: float, rng: torch.Generator) -> dict[str, float]:
    """Compare with ``Sam.decode``, for several numbers of prompts, points, masks and images."""
    side = sam.image_size
    found: dict[str, list[float]] = {"low_res_logits": [], "predicted_iou": []}
    embeddings = _embedding(sam, rng, 2)
    for case in _cases(sam.prompt_encoder):
        embedding = embeddings[: case.num_images]
        prompt = _random_prompt(sam, case.num_prompts, case.num_points, case.with_boxes, rng)
        masks = 5 * torch.randn(case.num_masks, 1, side // 4, side // 4, generator=rng) if case.num_masks else None
        fed = (_as_array(value) for value in (*prompt, masks))
        inputs = decoder_inputs(embedding.numpy(), *fed, pad_boxes=sam.prompt_encoder.pad_boxes)
        ours = _decode_all(
            sam,
            prompt,
            _for_each(embedding, case.num_prompts),
            None if masks is None else _for_each(masks, case.num_prompts),
        )
        for name, value, expected in zip(found, session.run(None, inputs), ours, strict=True):
            found[name].append(_difference(value, expected))
    return {name: max(values) for name, values in found.items()}


def _compare_sam_decoder(sam: Sam, session: Any, tolerance: float, rng: torch.Generator) -> dict[str, float]:
    """Compare with ``Sam.decode`` and ``ModelFrame``, with and without a mask input, for upright and wide images."""
    embedding, side = _embedding(sam, rng), sam.image_size
    found: dict[str, list[float]] = {"masks": [], "iou_predictions": [], "low_res_masks": []}
    upright, wide = (side, side // 3), (side // 2, side + 40)
    cases = ((1, False, False, upright), (0, True, True, wide), (3, True, False, upright), (4, False, True, wide))
    for num_points, with_box, with_mask, size in cases:
        prompt = _random_prompt(sam, 1, num_points, with_box, rng)
        mask_input = 5 * torch.randn(1, 1, side // 4, side // 4, generator=rng)
        fed = (_as_array(value) for value in prompt)
        points, labels = labelled_points(*fed, pad_boxes=sam.prompt_encoder.pad_boxes)
        inputs = {
            "image_embeddings": embedding.numpy(),
            "point_coords": points,
            "point_labels": labels.astype(np.float32),
            "mask_input": mask_input.numpy(),
            "has_mask_input": np.full(1, with_mask, np.float32),
            "orig_im_size": np.array(size, np.float32),
        }
        theirs = dict(zip(found, session.run(None, inputs), strict=True))
        logits, iou = _decode_all(sam, prompt, embedding, mask_input if with_mask else None)
        masks = ModelFrame(size, side).logits_to_original(logits[0]).mT[None]
        ours = {"masks": masks, "iou_predictions": iou, "low_res_masks": logits}
        chosen = list(range(4)) if theirs["masks"].shape[1] == 4 else _chosen(theirs, iou, points.shape[1], tolerance)
        for name, values in found.items():
            values.append(_difference(theirs[name], ours[name][:, chosen], largest=float(ours[name].abs().max())))
    return {name: max(values) for name, values in found.items()}


def _chosen(theirs: dict[str, np.ndarray], iou: Tensor, num_points: int, tolerance: float) -> list[int]:
    """Return the index of the mask that a decoder for one mask returned; of two with nearly the same IoU, either is."""
    if num_points > POINTS_OF_ONE_MASK:
        return [0]
    allowed = [i for i in (1, 2, 3) if float(iou[0, 1:].max() - iou[0, i]) <= 2 * tolerance * float(iou.abs().max())]
    return [min(allowed, key=lambda i: abs(float(theirs["iou_predictions"][0, 0] - iou[0, i])))]


COMPARISONS = {
    ("encoder", "mobilesamv2"): _compare_encoder,
    ("encoder", "sam"): _compare_pixel_encoder,
    ("decoder", "mobilesamv2"): _compare_decoder,
    ("decoder", "sam"): _compare_sam_decoder,
}


def _embedding(sam: Sam, rng: torch.Generator, num_images: int = 1) -> Tensor:
    return sam.image_encoder(torch.randn(num_images, 3, sam.image_size, sam.image_size, generator=rng))


def _cases(encoder: PromptEncoder) -> list[DecoderCase]:
    """Return the cases of a decoder, without masks where it takes none."""
    return [case if encoder.takes_masks else case._replace(num_masks=0) for case in DECODER_CASES]


def _random_prompt(sam: Sam, num_prompts: int, num_points: int, with_boxes: bool, rng: torch.Generator) -> Prompt:
    points = labels = boxes_xyxy = None
    if num_points:
        points = torch.rand(num_prompts, num_points, 2, generator=rng) * sam.image_size
        labels = torch.randint(-1, 2, (num_prompts, num_points), generator=rng)
        if not sam.prompt_encoder.takes_background:
            labels = labels.masked_fill(labels == PointLabel.BACKGROUND, PointLabel.FOREGROUND)
    if with_boxes:
        corners = torch.rand(num_prompts, 2, 2, generator=rng) * sam.image_size
        boxes_xyxy = torch.cat([corners.amin(1), corners.amax(1)], dim=1)
    return Prompt(points, labels, boxes_xyxy)


def _as_array(value: Tensor | None) -> np.ndarray | None:
    return None if value is None else value.numpy()


def _for_each(values: Tensor, num_prompts: int) -> Tensor:
    """Repeat images or masks so that each prompt has its own, unless there is one, which serves all."""
    return values if len(values) == 1 else values.repeat_interleave(num_prompts // len(values), dim=0)


def _decode_all(sam: Sam, prompt: Prompt, image_embedding: Tensor, mask_input: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the single mask and the three: low-res logits (N, 4, S/4, S/4) and predicted IoU (N, 4)."""
    parts = [sam.decode(image_embedding, *prompt, mask_input, multimask_output) for multimask_output in (False, True)]
    logits, predicted_iou = (torch.cat(both, dim=1) for both in zip(*parts, strict=True))
    return logits, predicted_iou


def _difference(theirs: np.ndarray, ours: Tensor, largest: float | None = None) -> float:
    """Return the largest difference over the largest value, by default of ``ours``; infinite if the shapes differ."""
    if theirs.shape != ours.shape:
        return float("inf")
    return float(np.abs(theirs - ours.numpy()).max() / (largest or np.abs(ours.numpy()).max()))
