"""SegEvery: one image to every mask. Sample prompts, decode, filter, suppress duplicates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mobilesamv2 import masks as mask_ops
from mobilesamv2.metrics.stage_time import StageTimer
from mobilesamv2.models.mask_decoder import Decoded
from mobilesamv2.models.sam import Sam
from mobilesamv2.pretrained import default_grid, load_pretrained
from mobilesamv2.prompts.sampler import PromptSampler
from mobilesamv2.run_lengths import MaskEncoder
from mobilesamv2.segany import PROMPTS_PER_BATCH, SegAny
from mobilesamv2.structures import Masks, Prompts

PROMPTS_PER_DEVICE_BATCH = 1024
"""Prompts whose masks are filtered at a time on an accelerator, which the filters and the clock wait for each time."""

CROP_EDGE = 20
"""A mask within so many pixels of the edge of its crop is taken to be cut by it. Source: SAM's mask generator."""

Box = tuple[int, int, int, int]


class SegEvery:
    """Segments everything in an image.

    Args:
        sam: the model, on any device; it should be in eval mode, as ``build_sam`` gives it.
        sampler: chooses the prompts and says how their masks are filtered and ranked.

    Example:
        >>> segevery = SegEvery(build_sam("mobile_sam", "mobile_sam.pt"), Grid())
        >>> masks = segevery(image)
        >>> json.dump(masks.to_coco(image_id=1), file)
    """

    def __init__(self, sam: Sam, sampler: PromptSampler) -> None:
        self.segany = SegAny(sam)
        self.sampler = sampler
        self.timer = StageTimer(sam.device)
        self._shown = (0, 0, 0, 0)

    @classmethod
    def from_pretrained(
        cls, name: str | Path, sampler: PromptSampler | None = None, weights: str | Path = "weights"
    ) -> SegEvery:
        """Segments with a model by name, made faster for inference, on the CPU.

        Args:
            name: what ``load_pretrained`` takes, with its errors: ``mini_conv``, ``mobile_sam``, a file, a folder, or
                owner/repository.
            sampler: None takes SAM's grid of points (``pretrained.default_grid``).
            weights: folder of released files.
        """
        sam = load_pretrained(name, weights)
        return cls(sam.for_inference(), sampler or default_grid(sam))

    def __call__(self, image: np.ndarray) -> Masks:
        """Every mask of an image, best predicted IoU first where the sampler asks for NMS, else in the prompts' order.

        Masks without a pixel are dropped, whatever the filters.

        Args:
            image: RGB uint8 (H, W, 3).

        Raises:
            ValueError: it is not such an array.
        """
        return next(self.each([image]))

    @torch.inference_mode()
    def each(self, images: Sequence[np.ndarray]) -> Iterator[Masks]:
        """Every mask of each image, as by a call for each; the encoder takes all images in one pass.

        That is faster on a GPU, and takes memory for all of them. ``timer`` is that of the last image that was given,
        with its share of the encoder's time.

        Args:
            images: RGB uint8 (H, W, 3) each, of any sizes.

        Raises:
            ValueError: one is not such an array.
        """
        if not images:
            return
        self.timer.device = self.segany.sam.device
        self.timer.start_image()
        with self.timer.stage("image_encoder"):
            embeddings = self.segany.encode(images)
        share = self.timer.ms["image_encoder"] / len(images)
        for image, embedding in zip(images, embeddings.split(1), strict=True):
            self.timer.start_image()
            self.timer.ms["image_encoder"] = share
            self.segany.set_image(image, embedding)
            self._shown = _whole(image)
            yield self._segment(image)

    def _segment(self, image: np.ndarray) -> Masks:
        """All rounds of prompts on the image that is set."""
        found: list[Masks] = []
        rounds = self.sampler.rounds(image)
        with self.timer.stage("prompt_sampling"):
            prompts = next(rounds, None)
        while prompts is not None:
            found.append(self._round(image, prompts))
            with self.timer.stage("prompt_sampling"):
                try:
                    prompts = rounds.send(found[-1])
                except StopIteration:
                    break
        with self.timer.stage("postprocessing"):
            if not found:
                return _no_masks(_size(image), Prompts(boxes_xyxy=torch.zeros(0, 4)))
            return self._suppress(found)

    def _round(self, image: np.ndarray, prompts: Prompts) -> Masks:
        """The masks of one round that pass the filters, and do not end where their crop does."""
        if len(prompts) == 0:
            return _no_masks(_size(image), prompts)
        crop = _whole(image) if prompts.crops_xyxy is None else _only_crop(prompts.crops_xyxy)
        x0, y0, x1, y1 = crop
        if crop != self._shown:
            with self.timer.stage("image_encoder"):
                self.segany.set_image(image[y0:y1, x0:x1])
            self._shown = crop
        if prompts.crops_xyxy is None:
            return self._decode(prompts)
        masks = self._decode(prompts.moved(-x0, -y0))
        with self.timer.stage("postprocessing"):
            return _uncrop(masks, crop, _size(image))

    def _decode(self, prompts: Prompts) -> Masks:
        """The masks of one round that pass the filters."""
        earlier = self.timer.num_prompts
        self.timer.num_prompts += len(prompts)
        kept: list[Masks] = []
        threshold = self.sampler.filters.predicted_iou
        iou_above = threshold if threshold > 0 else None
        on_cpu = self.segany.sam.device.type == "cpu"
        for batch in prompts.batches(PROMPTS_PER_BATCH if on_cpu else PROMPTS_PER_DEVICE_BATCH):
            with self.timer.stage("mask_decoder"):
                decoded = self.segany.predict_kept(batch, self.sampler.multimask, iou_above)
            with self.timer.stage("postprocessing"):
                kept.append(self._filter(batch, decoded, earlier))
            earlier += len(batch)
        return Masks.cat(kept)

    def _filter(self, prompts: Prompts, decoded: Decoded, first: int) -> Masks:
        """What passed the filter of predicted IoU to the masks that pass the others too.

        ``first`` is the place of the first prompt among all of the image.
        """
        num_masks = decoded.predicted_iou.shape[1]
        frame = self.segany.frame
        encoder = MaskEncoder.of(frame, decoded.logits.device)
        encoded, stability_score = encoder(decoded.logits, self.sampler.filters.stability)
        rles = [rle for rle in encoded if rle is not None]
        filled = torch.tensor([rle is not None for rle in encoded], dtype=torch.bool)
        index, stability_score = decoded.kept.cpu()[filled], stability_score[filled]
        iou = decoded.predicted_iou.flatten().float().cpu()[index]
        chosen = prompts[index // num_masks]
        return Masks(
            size=frame.original_size,
            rles=rles,
            boxes_xyxy=mask_ops.boxes_from_rles(rles),
            predicted_iou=iou,
            stability_score=stability_score,
            scores=self.sampler.rank(iou, stability_score, chosen),
            prompts=chosen,
            prompt_index=first + index // num_masks,
        )

    def _suppress(self, rounds: list[Masks]) -> Masks:
        """All rounds together, without the duplicates."""
        rounds = [masks for masks in rounds if len(masks)] or rounds[:1]
        masks = Masks.cat(rounds)
        filters, crops = self.sampler.filters, masks.prompts.crops_xyxy
        if crops is None:
            groups = torch.zeros(len(masks), dtype=torch.int64)
        else:
            groups = crops.unique(dim=0, return_inverse=True)[1]
        if filters.nms_iou < 1:
            masks = masks[mask_ops.nms(masks.boxes_xyxy, masks.predicted_iou, groups, filters.nms_iou)]
        if filters.crop_nms_iou < 1 and masks.prompts.crops_xyxy is not None:
            order = _crop_by_crop(masks.predicted_iou, masks.prompts.crops_xyxy)
            boxes, crops = masks.boxes_xyxy[order], masks.prompts.crops_xyxy[order]
            together, smaller = torch.zeros(len(masks), dtype=torch.int64), 1 / (crops[:, 2:] - crops[:, :2]).prod(1)
            masks = masks[order[mask_ops.nms(boxes, smaller, together, filters.crop_nms_iou)].sort().values]
        return masks


def _crop_by_crop(predicted_iou: Tensor, crops_xyxy: Tensor) -> Tensor:
    """Indices (D,) that bring masks in SAM's order, which decides between crops of one size: by crop, then by IoU."""
    best_first = predicted_iou.argsort(descending=True, stable=True)
    crop = crops_xyxy[best_first].unique(dim=0, return_inverse=True)[1]
    return best_first[crop.argsort(stable=True)]


def _size(image: np.ndarray) -> tuple[int, int]:
    """(H, W), pixels."""
    return image.shape[0], image.shape[1]


def _whole(image: np.ndarray) -> Box:
    """The crop that is the image."""
    return 0, 0, image.shape[1], image.shape[0]


def _only_crop(crops_xyxy: Tensor) -> Box:
    """The one crop of all prompts of a round."""
    boxes = crops_xyxy.unique(dim=0).tolist()
    if len(boxes) > 1:
        raise ValueError(f"The prompts of a round are of one crop; these are of {len(boxes)}: {boxes[:3]}.")
    x0, y0, x1, y1 = boxes[0]
    return x0, y0, x1, y1


def _uncrop(masks: Masks, crop: Box, size: tuple[int, int]) -> Masks:
    """Masks of a crop in the frame of the image, but for those that end where the crop does and the image doesn't."""
    x0, y0, _, _ = crop
    boxes = masks.boxes_xyxy + torch.tensor([x0, y0, x0, y0])
    whole = (~_is_cut(boxes, crop, size)).nonzero().flatten()
    masks = masks[whole]
    rles = mask_ops.uncrop(masks.rles, (x0, y0), size)
    return replace(masks, size=size, rles=rles, boxes_xyxy=boxes[whole], prompts=masks.prompts.moved(x0, y0))


def _is_cut(boxes_xyxy: Tensor, crop: Box, size: tuple[int, int]) -> Tensor:
    """Which boxes (D, 4) of masks, in the frame of the image, end where their crop does and the image doesn't, (D,)."""
    crop_edges, image_edges = torch.tensor(crop), torch.tensor([0, 0, size[1], size[0]])
    near_crop = (boxes_xyxy - crop_edges).abs() <= CROP_EDGE
    near_image = (boxes_xyxy - image_edges).abs() <= CROP_EDGE
    return (near_crop & ~near_image).any(1)


def _no_masks(size: tuple[int, int], prompts: Prompts) -> Masks:
    """The masks of no prompts."""
    none = torch.zeros(0)
    return Masks(size, [], torch.zeros(0, 4), none, none, none, prompts, torch.zeros(0, dtype=torch.int64))
