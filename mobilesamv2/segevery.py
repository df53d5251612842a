"""SegEvery: all masks of an image. Sample prompts, decode, filter, suppress duplicates."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mobilesamv2 import masks as mask_ops
from mobilesamv2.mask_regions import remove_small_regions
from mobilesamv2.metrics.stage_time import StageTimer
from mobilesamv2.models.sam import Sam
from mobilesamv2.pretrained import load_pretrained
from mobilesamv2.prompts.grid import Grid
from mobilesamv2.prompts.sampler import AdaptsToModel, PromptSampler
from mobilesamv2.rle_encoder import RleEncoder
from mobilesamv2.segany import PROMPTS_PER_BATCH, SegAny
from mobilesamv2.structures import Filters, Masks, Prompts

PROMPTS_PER_DEVICE_BATCH = 1024
"""Prompts per decoding batch on an accelerator: each batch ends with a synchronisation, for filters and timer."""

CROP_EDGE = 20
"""A mask within this many pixels of the edge of its crop counts as truncated. Source: SAM's mask generator."""

MAX_PENDING_BYTES = 2**29
"""Memory for low-res logits that are held until NMS; masks beyond it are encoded immediately."""

Box = tuple[int, int, int, int]
"""x0, y0, x1, y1, pixels of the image, exclusive at the right and the bottom."""


class _Candidates(NamedTuple):
    """Masks of a batch of prompts that passed the filter of predicted IoU, not yet encoded.

    Attributes:
        logits: (D, S/4, S/4), low-res.
        predicted_iou: (N, M), including rejected masks.
        mask_index: (D,) int64, index of each mask among all N * M.
        prompts: N prompts.
        first: index of the first prompt among all prompts of the image.
    """

    logits: Tensor
    predicted_iou: Tensor
    mask_index: Tensor
    prompts: Prompts
    first: int

    @property
    def scores(self) -> Tensor:
        """Return the predicted IoU of the masks, (D,) float32 on the CPU."""
        return self.predicted_iou.flatten().float().cpu()[self.mask_index]

    def select(self, keep: Tensor) -> _Candidates:
        """Return the masks where ``keep`` (D,) bool is true."""
        return self._replace(logits=self.logits[keep.to(self.logits.device)], mask_index=self.mask_index[keep])


@dataclass
class _BestScores:
    """The highest scores of an image's masks, for a warning where no mask is left."""

    predicted_iou: float = -math.inf
    stability_score: float = -math.inf

    def advice(self, filters: Filters) -> str:
        """Return which threshold every mask falls below; empty if there is none."""
        for name, score, fails in (
            ("pred_iou_thresh", "predicted_iou", self.predicted_iou <= filters.pred_iou_thresh),
            ("stability_score_thresh", "stability_score", self.stability_score < filters.stability_score_thresh),
        ):
            threshold, best = getattr(filters, name), getattr(self, score)
            if threshold > 0 and best > -math.inf and fails:
                return (
                    f"No mask passes {name}={threshold:g}: the highest {score} is {best:.3g}. Lower the threshold "
                    f"of the prompt sampler, Grid({name}=...) for example; 0 switches it off."
                )
        return ""


class SegEvery:
    """Segmentation of everything in an image.

    Args:
        sam: the model, on any device; it should be in eval mode, as ``build_sam`` returns it.
        sampler: chooses the prompts and defines how their masks are filtered and ranked; None is SAM's grid of points.
            Thresholds that it leaves open are the model's own, ``sam.thresholds``.

    Raises:
        TypeError: if ``sam`` is not a model, or ``sampler`` is none.

    Example:
        >>> segevery = SegEvery.from_pretrained("mini_conv", Grid(points_per_side=16))
        >>> masks = segevery(image)  # image: RGB uint8 (H, W, 3)
        >>> masks[0].shape == image.shape[:2]
        True
        >>> results = masks.to_coco(image_id=1)  # ready for json.dump
    """

    def __init__(self, sam: Sam, sampler: PromptSampler | None = None) -> None:
        self.segany = SegAny(sam)
        sampler = Grid() if sampler is None else sampler
        if isinstance(sampler, type) or not hasattr(sampler, "rounds"):
            got = f"the class {sampler.__name__}" if isinstance(sampler, type) else type(sampler).__name__
            raise TypeError(f"sampler must be a prompt sampler of mobilesamv2.prompts, Grid() for example, got {got}.")
        self.sampler = sampler.for_model(sam.thresholds) if isinstance(sampler, AdaptsToModel) else sampler
        self.timer = StageTimer(sam.device)
        self._current_crop = (0, 0, 0, 0)
        self._best = _BestScores()
        self._has_warned = False

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        sampler: PromptSampler | None = None,
        weights: str | Path = "weights",
        device: str | torch.device = "cpu",
        download: bool | None = None,
    ) -> SegEvery:
        """Load a model by name, optimised for inference.

        Args:
            name: as in ``load_pretrained``, with its errors: ``mini_conv``, ``mobile_sam``, a file, a folder, or
                owner/repository.
            sampler: None is SAM's grid of points.
            weights: folder of published weight files.
            device: of the model, ``"cuda"`` for example.
            download: whether a published file that is missing is downloaded, as in ``load_pretrained``.
        """
        return cls(load_pretrained(name, weights, download).for_inference().to(device), sampler)

    def __call__(self, image: np.ndarray) -> Masks:
        """Return all masks of an image, sorted by predicted IoU if the sampler uses NMS, else in the prompts' order.

        Empty masks are always dropped. With ``min_mask_region_area``, masks that lost a small region come last. Where
        every mask falls below a threshold, a warning names it and the best value seen, once per ``SegEvery``.

        Args:
            image: RGB uint8 (H, W, 3).

        Raises:
            ValueError: if ``image`` is not a uint8 array of shape (H, W, 3).
        """
        return next(self.generate_batch([image]))

    @torch.inference_mode()
    def generate_batch(self, images: Sequence[np.ndarray]) -> Iterator[Masks]:
        """Yield all masks of each image, as one call per image would; the encoder runs once on all images.

        This is faster on a GPU and holds all images in memory. ``timer`` holds the times of the last image yielded,
        with its share of the encoder's time.

        Args:
            images: RGB uint8 (H, W, 3) each, of any sizes; an array (B, H, W, 3) too.

        Raises:
            ValueError: if an image is not a uint8 array of shape (H, W, 3).
        """
        if len(images) == 0:  # an array (B, H, W, 3) has no truth value
            return
        self.timer.device = self.segany.sam.device
        self.timer.start_image()
        with self.timer.stage("image_encoder"):
            embeddings = self.segany.encode(images)
        shares = [ms["image_encoder"] / len(images) for ms in (self.timer.ms, self.timer.cpu_ms)]
        for image, embedding in zip(images, embeddings.split(1), strict=True):
            self.timer.start_image()
            self.timer.ms["image_encoder"], self.timer.cpu_ms["image_encoder"] = shares
            self.segany.set_image(image, embedding)
            self._current_crop = _full_image_box(image)
            yield self._segment(image)

    def _segment(self, image: np.ndarray) -> Masks:
        """Run all rounds of prompts on the image that is set."""
        round_masks: list[Masks] = []
        self._best = _BestScores()
        rounds = self.sampler.rounds(image, self.segany.image_embedding)
        with self.timer.stage("prompt_sampling"):
            prompts = next(rounds, None)
        while prompts is not None:
            round_masks.append(self._run_round(image, prompts))
            with self.timer.stage("prompt_sampling"):
                try:
                    prompts = rounds.send(round_masks[-1])
                except StopIteration:
                    break
        with self.timer.stage("postprocessing"):
            if not round_masks:
                return _no_masks(_size(image), Prompts(boxes_xyxy=torch.zeros(0, 4)))
            masks = self._suppress(round_masks)
        if not len(masks) and not self._has_warned and (advice := self._best.advice(self.sampler.filters)):
            self._has_warned = True
            warnings.warn(advice, stacklevel=5)  # whoever calls SegEvery
        return masks

    def _run_round(self, image: np.ndarray, prompts: Prompts) -> Masks:
        """Return the masks of one round that pass the filters and do not touch the edge of their crop."""
        if len(prompts) == 0:
            return _no_masks(_size(image), prompts)
        crop = _full_image_box(image) if prompts.crops_xyxy is None else _only_crop(prompts.crops_xyxy)
        x0, y0, x1, y1 = crop
        if crop != self._current_crop:
            with self.timer.stage("image_encoder"):
                self.segany.set_image(image[y0:y1, x0:x1])
            self._current_crop = crop
        if prompts.crops_xyxy is None:
            return self._decode(prompts)
        masks = self._decode(prompts.moved(-x0, -y0))
        with self.timer.stage("postprocessing"):
            return _uncrop(masks, crop, _size(image))

    def _decode(self, prompts: Prompts) -> Masks:
        """Return the masks of one round that pass the filters."""
        first = self.timer.num_prompts
        self.timer.num_prompts += len(prompts)
        pending: list[_Candidates] = []
        encoded: list[Masks] = []
        threshold = self.sampler.filters.pred_iou_thresh
        pred_iou_thresh = threshold if threshold > 0 else None
        on_cpu = self.segany.sam.device.type == "cpu"
        for batch in prompts.batches(PROMPTS_PER_BATCH if on_cpu else PROMPTS_PER_DEVICE_BATCH):
            with self.timer.stage("mask_decoder"):
                decoded = self.segany.predict_filtered(batch, self.sampler.multimask_output, pred_iou_thresh)
                self._best.predicted_iou = max(self._best.predicted_iou, float(decoded.predicted_iou.max()))
            with self.timer.stage("postprocessing"):
                candidates = _Candidates(decoded.logits, decoded.predicted_iou, decoded.keep_index.cpu(), batch, first)
                if not encoded and self._can_defer(pending, candidates):
                    pending.append(candidates)
                else:
                    encoded.append(self._encode(candidates))
            first += len(batch)
        with self.timer.stage("postprocessing"):
            return Masks.cat([*self._encode_survivors(pending, encoded), *encoded])

    def _can_defer(self, pending: Sequence[_Candidates], candidates: _Candidates) -> bool:
        """Check whether masks can be held as logits until NMS over the round, which drops most of them."""
        filters = self.sampler.filters
        held = sum(c.logits.nbytes for c in (*pending, candidates))
        return (
            self.sampler.one_round
            and filters.stability_score_thresh <= 0
            and filters.box_nms_thresh < 1
            and held <= MAX_PENDING_BYTES
        )

    def _encode_survivors(self, pending: Sequence[_Candidates], encoded: Sequence[Masks]) -> list[Masks]:
        """Run box NMS over pending and encoded masks, and encode the pending ones that survive."""
        if not pending:
            return []
        encoder = RleEncoder.for_frame(self.segany.frame, pending[0].logits.device)
        num_encoded = sum(len(masks) for masks in encoded)
        extents = [encoder.boxes(candidates.logits) for candidates in pending]
        boxes = torch.cat([*(boxes for boxes, _ in extents), *(masks.boxes_xyxy for masks in encoded)])
        non_empty = torch.cat([*(part for _, part in extents), torch.ones(num_encoded, dtype=torch.bool)])
        iou = torch.cat([*(c.scores for c in pending), *(masks.predicted_iou for masks in encoded)])
        index = non_empty.nonzero().flatten()
        one_group = torch.zeros(len(index), dtype=torch.int64)
        survives = torch.zeros(len(boxes), dtype=torch.bool)
        keep = mask_ops.nms(boxes[index], iou[index], one_group, self.sampler.filters.box_nms_thresh)
        survives[index[keep]] = True
        parts = survives.split([*(len(c.mask_index) for c in pending), num_encoded])
        return [self._encode(c.select(part)) for c, part in zip(pending, parts[:-1], strict=True)]

    def _encode(self, candidates: _Candidates) -> Masks:
        """Encode candidates and drop those that are empty or unstable."""
        num_masks = candidates.predicted_iou.shape[1]
        frame = self.segany.frame
        encoder = RleEncoder.for_frame(frame, candidates.logits.device)
        encoded, stability_score = encoder(candidates.logits, self.sampler.filters.stability_score_thresh)
        if len(stability_score):
            self._best.stability_score = max(self._best.stability_score, float(stability_score.max()))
        rles = [rle for rle in encoded if rle is not None]
        kept = torch.tensor([rle is not None for rle in encoded], dtype=torch.bool)
        index, iou, stability_score = candidates.mask_index[kept], candidates.scores[kept], stability_score[kept]
        prompts = candidates.prompts[index // num_masks]
        return Masks(
            size=frame.original_size,
            rles=rles,
            boxes_xyxy=mask_ops.boxes_from_rles(rles),
            predicted_iou=iou,
            stability_score=stability_score,
            scores=self.sampler.rank(iou, stability_score, prompts),
            prompts=prompts,
            prompt_index=candidates.first + index // num_masks,
        )

    def _suppress(self, rounds: list[Masks]) -> Masks:
        """Merge all rounds and drop duplicates by NMS within and between crops."""
        rounds = [masks for masks in rounds if len(masks)] or rounds[:1]
        masks = Masks.cat(rounds)
        filters, crops = self.sampler.filters, masks.prompts.crops_xyxy
        if crops is None:
            groups = torch.zeros(len(masks), dtype=torch.int64)
        else:
            groups = crops.unique(dim=0, return_inverse=True)[1]
        if filters.box_nms_thresh < 1:
            masks = masks[mask_ops.nms(masks.boxes_xyxy, masks.predicted_iou, groups, filters.box_nms_thresh)]
        if filters.crop_nms_thresh < 1 and masks.prompts.crops_xyxy is not None:
            order = _crop_by_crop(masks.predicted_iou, masks.prompts.crops_xyxy)
            boxes, crops = masks.boxes_xyxy[order], masks.prompts.crops_xyxy[order]
            one_group = torch.zeros(len(masks), dtype=torch.int64)
            inverse_area = 1 / (crops[:, 2:] - crops[:, :2]).prod(1)
            masks = masks[order[mask_ops.nms(boxes, inverse_area, one_group, filters.crop_nms_thresh)].sort().values]
        if filters.min_mask_region_area > 0:
            nms_thresh = max(filters.box_nms_thresh, filters.crop_nms_thresh)
            masks = remove_small_regions(masks, filters.min_mask_region_area, nms_thresh)
        return masks


def _crop_by_crop(predicted_iou: Tensor, crops_xyxy: Tensor) -> Tensor:
    """Return indices (D,) that sort masks by crop, then by IoU: SAM's order, which breaks ties between equal crops."""
    by_iou = predicted_iou.argsort(descending=True, stable=True)
    crop = crops_xyxy[by_iou].unique(dim=0, return_inverse=True)[1]
    return by_iou[crop.argsort(stable=True)]


def _size(image: np.ndarray) -> tuple[int, int]:
    """Return the image's (H, W), pixels."""
    return image.shape[0], image.shape[1]


def _full_image_box(image: np.ndarray) -> Box:
    """Return the box of the full image."""
    return 0, 0, image.shape[1], image.shape[0]


def _only_crop(crops_xyxy: Tensor) -> Box:
    """Return the crop that all prompts of a round share."""
    boxes = crops_xyxy.unique(dim=0).tolist()
    if len(boxes) > 1:
        raise ValueError(f"All prompts of a round must be of one crop, got {len(boxes)}: {boxes[:3]}.")
    x0, y0, x1, y1 = boxes[0]
    return x0, y0, x1, y1


def _uncrop(masks: Masks, crop: Box, size: tuple[int, int]) -> Masks:
    """Move masks of a crop into the image's frame and drop those that the crop's edge truncates."""
    x0, y0, _, _ = crop
    boxes = masks.boxes_xyxy + torch.tensor([x0, y0, x0, y0])
    complete = (~_touches_crop_edge(boxes, crop, size)).nonzero().flatten()
    masks = masks[complete]
    rles = mask_ops.uncrop(masks.rles, (x0, y0), size)
    return replace(masks, size=size, rles=rles, boxes_xyxy=boxes[complete], prompts=masks.prompts.moved(x0, y0))


def _touches_crop_edge(boxes_xyxy: Tensor, crop: Box, size: tuple[int, int]) -> Tensor:
    """Check which boxes (D, 4), in the image's frame, end at the edge of their crop but not of the image; (D,) bool."""
    crop_edges, image_edges = torch.tensor(crop), torch.tensor([0, 0, size[1], size[0]])
    near_crop = (boxes_xyxy - crop_edges).abs() <= CROP_EDGE
    near_image = (boxes_xyxy - image_edges).abs() <= CROP_EDGE
    return (near_crop & ~near_image).any(1)


def _no_masks(size: tuple[int, int], prompts: Prompts) -> Masks:
    """Return zero masks."""
    none = torch.zeros(0)
    return Masks(size, [], torch.zeros(0, 4), none, none, none, prompts, torch.zeros(0, dtype=torch.int64))
