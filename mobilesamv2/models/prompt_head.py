"""Prompt head: class-agnostic boxes from the image embedding that the mask decoder reads anyway."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.ops import nms
from typing_extensions import override

from mobilesamv2.models.object_detector import snap_to_border
from mobilesamv2.ranges import Count
from mobilesamv2.structures import EMBEDDING_STRIDE
from mobilesamv2.transforms import ModelFrame, Resizing

LEVELS = 4
"""Maps on which boxes are predicted, each of half the resolution of the one before."""

PRIOR_QUALITY = 0.01
"""What an untrained head predicts at every point. Source: Lin et al., Focal Loss for Dense Object Detection."""

LARGEST_LOG_DISTANCE = 6.0
"""Of the natural logarithm of a distance in strides: 400 strides are more than a side of the image on every map."""

CANDIDATES = 1000
"""Boxes of highest quality that NMS compares, where it is not to return more than a fifth as many."""


class BoxPredictions(NamedTuple):
    """A box at each of A points of the image, before NMS.

    Attributes:
        quality: (B, A) logits of the box's IoU with an object, 0 where there is none.
        boxes_xyxy: (B, A, 4), pixels of the model's input; each contains its point.
        points: (A, 2) xy, pixels of the model's input.
    """

    quality: Tensor
    boxes_xyxy: Tensor
    points: Tensor


class PromptHead(nn.Module):
    """A small anchor-free detector of one class that reads image embeddings.

    The embedding is upsampled by pixel shuffle, and downsampled by strided convolutions, to four maps; where it holds
    finer levels, as SAM 2's does, these are added at their strides. Each pixel of a map predicts one box by the
    distances of its four edges, and the box's quality.

    Args:
        level_channels: channels of each level in the embedding, coarsest first: ``Sam.level_channels``.
        image_size: S, pixels of the model's input.
        keep_aspect_ratio: the model's, see ``Resizing``.
        width: channels at stride 16 and coarser; each finer map has half as many as the one before.
        finest_stride: pixels of the model's input per pixel of the finest map; the coarsest has eight times as many.
        encoder_name: name of the image encoder whose embeddings it is trained on; saved with the weights.
        encoder_sha256: of that encoder's weights; saved too.

    Source: the idea is Lite-SAM's AutoPPN and AoP-SAM's, neither of which is released. Distances, points as anchors and
    one box a point are FCOS's, the quality is that of generalized focal loss; the network is this project's.
    """

    def __init__(
        self,
        level_channels: Sequence[int],
        image_size: int,
        keep_aspect_ratio: bool = True,
        width: Count = 128,
        finest_stride: Literal[4, 8, 16] = 8,
        encoder_name: str | None = None,
        encoder_sha256: str | None = None,
    ) -> None:
        super().__init__()
        if finest_stride not in (4, 8, 16):
            raise ValueError(f"finest_stride must be 4, 8 or 16, got {finest_stride}.")
        ups = (EMBEDDING_STRIDE // finest_stride).bit_length() - 1
        if width % 2**ups or width < 2**ups:
            raise ValueError(f"width must be a multiple of {2**ups} for finest_stride={finest_stride}, got {width}.")
        self.level_channels = tuple(level_channels)
        self.image_size, self.keep_aspect_ratio = image_size, keep_aspect_ratio
        self.width, self.finest_stride = width, finest_stride
        self.encoder_name, self.encoder_sha256 = encoder_name, encoder_sha256
        widths = [width >> i for i in range(ups + 1)]  # at strides 16, 8, 4
        self.stem = nn.Sequential(_conv(self.level_channels[0], width, 1), _Residual(width))
        self.ups = nn.ModuleList(_Upsample(widths[i], widths[i + 1], self._pixels_of(i + 1)) for i in range(ups))
        self.downs = nn.ModuleList(_conv(width, width, 3, stride=2) for _ in range(LEVELS - 1 - ups))
        maps = widths[::-1] + [width] * (LEVELS - 1 - ups)  # finest first
        self.outputs = nn.ModuleList(nn.Sequential(_conv(w, w, 3), nn.Conv2d(w, 5, 1)) for w in maps)
        for output in self.outputs:
            last = output[1]  # pyright: ignore[reportIndexIssue]
            nn.init.normal_(last.weight, std=0.01)
            nn.init.constant_(last.bias, math.log(2))  # boxes of four strides a side
            nn.init.constant_(last.bias[:1], math.log(PRIOR_QUALITY / (1 - PRIOR_QUALITY)))

    def _pixels_of(self, level: int) -> int:
        """Return the channels that a pixel of a finer level has in the embedding, 0 where that lacks the level."""
        return self.level_channels[level] // 4**level if level < len(self.level_channels) else 0

    @override
    def forward(self, embedding: Tensor) -> BoxPredictions:
        """Predict boxes on image embeddings (B, C, S/16, S/16); channels behind those of the levels are not read."""
        coarse, *finer = embedding[:, : sum(self.level_channels)].split(self.level_channels, 1)
        middle = self.stem(coarse)
        maps = [middle]
        for i, up in enumerate(self.ups):
            level = F.pixel_shuffle(finer[i], 2 ** (i + 1)) if i < len(finer) else None
            maps.insert(0, up(maps[0], level))
        for down in self.downs:
            maps.append(down(maps[-1]))
        qualities, boxes, points = [], [], []
        for i, (features, output) in enumerate(zip(maps, self.outputs, strict=True)):
            stride = self.finest_stride * 2**i
            raw = output(features).float().flatten(2).mT  # (B, pixels, 5)
            centres = _centres(features.shape[2], features.shape[3], stride, features.device)
            distances = raw[..., 1:].clamp(max=LARGEST_LOG_DISTANCE).exp() * stride
            qualities.append(raw[..., 0])
            boxes.append(torch.cat([centres - distances[..., :2], centres + distances[..., 2:]], dim=-1))
            points.append(centres)
        return BoxPredictions(torch.cat(qualities, 1), torch.cat(boxes, 1), torch.cat(points))

    def fuse_(self) -> PromptHead:
        """Fold the batch norms behind convolutions into these in place, for inference; return the head itself."""
        for layers in self.modules():
            if not isinstance(layers, nn.Sequential):
                continue
            conv, norm = layers[0], layers[1]
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                layers[0], layers[1] = fuse_conv_bn_eval(conv, norm), nn.Identity()
        return self

    def boxes(
        self,
        embedding: Tensor,
        resized: Sequence[tuple[int, int]],
        confidence: float,
        nms_iou: float,
        max_boxes: int,
    ) -> list[tuple[Tensor, Tensor]]:
        """Find the boxes of each image.

        Args:
            embedding: (B, C, S/16, S/16).
            resized: (height, width) of each image in the model's input, pixels, without padding.
            confidence: boxes of lower confidence are dropped.
            nms_iou: of two boxes whose IoU is higher, the more confident is kept.
            max_boxes: at most this many boxes per image, the most confident.

        Returns:
            For each image its boxes (N, 4) xyxy, pixels of the model's input, clipped to the image, and their
            confidence (N,), sorted by it, highest first.
        """
        weights = next(self.parameters())
        with torch.autocast(weights.device.type, enabled=False):  # half precision would round boxes to several pixels
            predictions = self(embedding.to(weights))
        candidates = max(CANDIDATES, 5 * max_boxes)
        found = []
        for quality, boxes, (height, width) in zip(predictions.quality, predictions.boxes_xyxy, resized, strict=True):
            scores, order = quality.sigmoid().topk(min(candidates, len(quality)))
            limits = boxes.new_tensor([width, height, width, height])
            clipped = torch.minimum(boxes[order].clamp(min=0), limits)
            is_kept = (scores >= confidence) & (clipped[:, 2:] > clipped[:, :2]).all(1)
            clipped, scores = clipped[is_kept], scores[is_kept]
            survivors = nms(clipped, scores, nms_iou)[:max_boxes]
            found.append((clipped[survivors], scores[survivors]))
        return found

    @torch.inference_mode()
    def detect_in_embedding(
        self,
        embedding: Tensor,
        size: tuple[int, int],
        *,
        confidence: float,
        nms_iou: float,
        max_boxes: int,
        snap: int,
    ) -> tuple[Tensor, Tensor]:
        """Find the boxes of an image in its embedding (1, C, S/16, S/16); see ``prompts.EmbeddingDetector``."""
        resizing = Resizing.LONGEST_SIDE if self.keep_aspect_ratio else Resizing.SQUARE
        frame = ModelFrame(size, self.image_size, resizing)
        [(boxes, scores)] = self.boxes(embedding, [frame.resized], confidence, nms_iou, max_boxes)
        return frame.boxes_to_original(snap_to_border(boxes, frame.resized, snap)).cpu(), scores.cpu()


class _Residual(nn.Module):
    """Two 3 x 3 convolutions beside the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_conv(width, width, 3), _conv(width, width, 3, activation=False))

    @override
    def forward(self, features: Tensor) -> Tensor:
        return F.relu(features + self.body(features))


class _Upsample(nn.Module):
    """Doubling of a map's resolution by pixel shuffle, with the embedding's own level of that stride added.

    Args:
        in_channels: of the map.
        out_channels: of the doubled map.
        level_channels: of the level; 0 where there is none.
    """

    def __init__(self, in_channels: int, out_channels: int, level_channels: int) -> None:
        super().__init__()
        self.expand = nn.Conv2d(in_channels, 4 * out_channels, 1)
        self.lateral = nn.Conv2d(level_channels, out_channels, 1) if level_channels else None
        self.refine = nn.Sequential(nn.BatchNorm2d(out_channels), nn.ReLU(), _conv(out_channels, out_channels, 3))

    @override
    def forward(self, features: Tensor, level: Tensor | None) -> Tensor:
        doubled = F.pixel_shuffle(self.expand(features), 2)
        if self.lateral is not None and level is not None:
            doubled = doubled + self.lateral(level)
        return self.refine(doubled)


def _conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1, activation: bool = True) -> nn.Sequential:
    layers = [
        nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(out_channels),
        *([nn.ReLU()] if activation else []),
    ]
    return nn.Sequential(*layers)


def _centres(rows: int, columns: int, stride: int, device: torch.device) -> Tensor:
    """Return the centres (rows * columns, 2) xy of a map's pixels, row by row, pixels of the model's input."""
    y, x = torch.meshgrid(
        *((torch.arange(n, device=device, dtype=torch.float32) + 0.5) * stride for n in (rows, columns)), indexing="ij"
    )
    return torch.stack([x, y], dim=-1).reshape(-1, 2)
