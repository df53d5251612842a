"""SegAny: masks for prompts on one image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mobilesamv2.masks import MASK_THRESHOLD
from mobilesamv2.models.mask_decoder import Decoded
from mobilesamv2.models.sam import Sam
from mobilesamv2.models.transformer import ImageContext
from mobilesamv2.pretrained import load_pretrained
from mobilesamv2.prompts.arguments import check_prompts
from mobilesamv2.structures import Prompts
from mobilesamv2.transforms import ModelFrame, check_image, to_model_input

PROMPTS_PER_BATCH = 64
"""Prompts decoded at a time; memory scales with it and not with N."""


class Prediction(NamedTuple):
    """Masks of N prompts.

    Attributes:
        masks: (N, M, H, W) bool.
        predicted_iou: (N, M) float32.
        low_res_logits: (N, M, S/4, S/4) float32; one of a prompt's M can be
            passed back as its ``mask_input``. Of SAM 2 they are clamped to -32 to 32, as by its official predictor,
            after the masks are made of them.
    """

    masks: np.ndarray
    predicted_iou: np.ndarray
    low_res_logits: np.ndarray


class SegAny:
    """Interactive segmentation of one image by prompts.

    Args:
        sam: the model, on any device; it should be in eval mode, as ``build_sam`` returns it.

    Raises:
        TypeError: if ``sam`` is not a model.

    Example:
        >>> segany = SegAny.from_pretrained("mini_conv")  # or SegAny(sam), of any model
        >>> segany.set_image(image)  # RGB uint8 (H, W, 3)
        >>> masks, predicted_iou, low_res_logits = segany.predict(boxes=[10, 20, 200, 150], multimask_output=False)
        >>> masks.shape == (1, 1, *image.shape[:2])  # of one prompt, one mask
        True
    """

    def __init__(self, sam: Sam) -> None:
        if not isinstance(sam, Sam):
            raise TypeError(
                "sam must be a model, as load_pretrained(name) and build_sam(name, file) return it, got "
                f"{type(sam).__name__}. SegAny.from_pretrained(name) and SegEvery.from_pretrained(name) take a name."
            )
        self.sam = sam
        self._embedding: Tensor | None = None
        self._image_context: ImageContext | None = None
        self._frame: ModelFrame | None = None

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        weights: str | Path = "weights",
        device: str | torch.device = "cpu",
        download: bool | None = None,
    ) -> SegAny:
        """Load a model by name, optimised for inference.

        Args:
            name: as in ``load_pretrained``, with its errors.
            weights: folder of published weight files.
            device: of the model, ``"cuda"`` for example.
            download: whether a published file that is missing is downloaded, as in ``load_pretrained``.
        """
        return cls(load_pretrained(name, weights, download).for_inference().to(device))

    @torch.inference_mode()
    def encode(self, images: Sequence[np.ndarray]) -> Tensor:
        """Return the image embeddings (B, C, S/16, S/16) of B images of any sizes, from one pass of the encoder.

        Args:
            images: RGB uint8 (H, W, 3) each.

        Raises:
            ValueError: if an image is not a uint8 array of shape (H, W, 3), or the encoder returns NaN or infinity.
        """
        sam = self.sam
        mean, std = sam.pixel_mean.float(), sam.pixel_std.float()
        pixels = torch.cat(
            [to_model_input(check_image(image), sam.encoder_side, mean, std, sam.resizing) for image in images]
        )
        return _finite(sam.image_encoder(pixels.to(sam.pixel_mean.dtype)), "image encoder")

    def set_image(self, image: np.ndarray, embedding: Tensor | None = None) -> None:
        """Encode an image; prompts refer to it until the next one is set.

        Args:
            image: RGB uint8 (H, W, 3).
            embedding: (1, C, S/16, S/16) of this image, if ``encode`` has already computed it.

        Raises:
            ValueError: if ``image`` is not a uint8 array of shape (H, W, 3).
        """
        self._embedding = self.encode([image]) if embedding is None else embedding
        self._image_context = None  # computed on demand, so that its time counts as the decoder's
        size = (image.shape[0], image.shape[1])
        self._frame = ModelFrame(size, self.sam.image_size, self.sam.resizing)

    @property
    def image_embedding(self) -> Tensor:
        """Return the embedding (1, C, S/16, S/16) of the image that is set.

        Raises:
            RuntimeError: if no image is set.
        """
        if self._embedding is None:
            raise RuntimeError("No image is set: call set_image(image) first.")
        return self._embedding

    @property
    def frame(self) -> ModelFrame:
        """Return how the image that is set lies in the model's input.

        Raises:
            RuntimeError: if no image is set.
        """
        if self._frame is None:
            raise RuntimeError("No image is set: call set_image(image) first.")
        return self._frame

    def predict(
        self,
        points: Any = None,
        labels: Any = None,
        boxes: Any = None,
        mask_input: Any = None,
        multimask_output: bool = True,
    ) -> Prediction:
        """Predict the masks of N prompts on the image that is set. A prompt may combine points, a box and a mask.

        Prompts are lists, tuples, NumPy arrays, or tensors on any device.

        Args:
            points: (N, P, 2) xy, pixels of the image; (P, 2) is one prompt of P points.
            labels: (N, P), values of ``PointLabel``: 1 foreground, 0 background, -1 padding; (P,) for one prompt;
                None: all foreground.
            boxes: (N, 4) xyxy, pixels of the image; (4,) is one box.
            mask_input: (N, S/4, S/4) low-res logits of an earlier prediction, or (N, 1, S/4, S/4); one mask, of
                (S/4, S/4) too, serves all prompts.
            multimask_output: three masks per prompt, for ambiguous prompts, instead of one.

        Returns:
            Masks, predicted IoU and low-res logits.

        Raises:
            RuntimeError: if no image is set.
            ValueError: if there is no prompt, an argument is no array of numbers, shapes or numbers of prompts
                disagree, labels are others than 1, 0 and -1, values are not finite, or the model does not take such
                prompts (EfficientSAM: background points, masks, more than six points).

        Example:
            >>> segany = SegAny.from_pretrained("mini_conv")
            >>> segany.set_image(image)  # RGB uint8 (H, W, 3)
            >>> prediction = segany.predict(points=[[80, 60]])  # a click: one prompt of one point, three masks
            >>> best = prediction.predicted_iou[0].argmax()
            >>> prediction.masks[0, best].shape == image.shape[:2]
            True
        """
        prompts, masks = check_prompts(points, labels, boxes, mask_input, self.sam.image_size // 4)
        logits, predicted_iou = self.predict_low_res(prompts, multimask_output, masks)
        height, width = self.frame.original_size
        full = np.empty((*logits.shape[:2], height, width), dtype=bool)
        for i, low_res in enumerate(logits):
            full[i] = (self.frame.logits_to_original(low_res) > MASK_THRESHOLD).transpose(1, 2).cpu().numpy()
        low_res_logits = self.sam.as_mask_input(logits.float())
        return Prediction(full, predicted_iou.float().cpu().numpy(), low_res_logits.cpu().numpy())

    @torch.inference_mode()
    def predict_low_res(
        self, prompts: Prompts | None, multimask_output: bool, mask_input: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return low-res logits (N, M, S/4, S/4) and predicted IoU (N, M) of N prompts, on the model's device.

        Args:
            prompts: in pixels of the image; None where ``mask_input`` alone is the prompt.
            multimask_output: three masks per prompt instead of one.
            mask_input: (N, 1, S/4, S/4) logits.
        """
        total = len(mask_input) if mask_input is not None else len(prompts) if prompts is not None else 0
        parts = []
        for start in range(0, total, PROMPTS_PER_BATCH):
            current = slice(start, start + PROMPTS_PER_BATCH)
            batch = None if prompts is None else prompts[current]
            if mask_input is None and batch is not None:
                decoded = self.predict_filtered(batch, multimask_output)
                parts.append((decoded.logits.unflatten(0, decoded.predicted_iou.shape), decoded.predicted_iou))
            else:
                inputs = {} if batch is None else self._in_model_frame(batch)
                if mask_input is not None:
                    inputs["mask_input"] = mask_input[current].to(self.sam.device)
                decoded = self.sam.decode(self.image_embedding, **inputs, multimask_output=multimask_output)
                parts.append((_finite(decoded[0], "mask decoder"), _finite(decoded[1], "mask decoder")))
        logits, predicted_iou = zip(*parts, strict=True)
        return torch.cat(logits), torch.cat(predicted_iou)

    @torch.inference_mode()
    def predict_filtered(
        self, prompts: Prompts, multimask_output: bool, pred_iou_thresh: float | None = None
    ) -> Decoded:
        """Predict the masks of N prompts and keep those of high predicted IoU, on the model's device.

        Args:
            prompts: in pixels of the image.
            multimask_output: three masks per prompt instead of one.
            pred_iou_thresh: a mask is kept above it; rejected ones are never upscaled. None keeps all.

        Raises:
            ValueError: if the decoder returns NaN, which would silently count as "no mask", or infinity.
        """
        if self._image_context is None:
            self._image_context = self.sam.image_context(self.image_embedding)
        inputs = self._in_model_frame(prompts)
        decoded = self.sam.decode_filtered(
            self._image_context, **inputs, multimask_output=multimask_output, pred_iou_thresh=pred_iou_thresh
        )
        _finite(decoded.predicted_iou, "mask decoder")
        if len(decoded.logits):
            _finite(torch.stack(decoded.logits.aminmax()), "mask decoder")  # NaN anywhere is NaN in both
        return decoded

    def _in_model_frame(self, prompts: Prompts) -> dict[str, Tensor]:
        """Return prompts in the model's frame, as arguments of ``Sam.decode``."""
        inputs, device = {}, self.sam.device
        if prompts.points is not None and prompts.labels is not None:
            inputs["points"] = self.frame.coords_to_model(prompts.points).to(device)
            inputs["labels"] = prompts.labels.to(device)
        if prompts.boxes_xyxy is not None:
            inputs["boxes_xyxy"] = self.frame.boxes_to_model(prompts.boxes_xyxy).to(device)
        return inputs


def _finite(values: Tensor, network: str) -> Tensor:
    """Return the values if all are finite; thresholds would turn NaN into "no mask" silently."""
    if not torch.isfinite(values).all():
        raise ValueError(
            f"The {network} returns NaN or infinity in {values.dtype}: its weights are broken, or half precision can't "
            "hold its values (bfloat16 and float32 can)."
        )
    return values
