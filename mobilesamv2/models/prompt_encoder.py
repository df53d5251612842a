"""SAM's prompt encoder: points, boxes and masks to embeddings. Parameter names match the released files."""

from __future__ import annotations

import math

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from mobilesamv2.structures import PointLabel


class FourierPositions(nn.Module):
    """Positional encoding of [0, 1] x [0, 1] by sines and cosines of fixed random frequencies.

    Args:
        num_frequencies: half the number of channels.
    """

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, num_frequencies: int) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(2, num_frequencies))

    def forward(self, coords: Tensor) -> Tensor:
        """Encode (..., 2) xy in [0, 1] as (..., C), in the dtype of the weights.

        The angles are float32 even under autocast, which would round a matrix product: in half precision neighbouring
        pixels become indistinguishable.
        """
        frequencies = self.positional_encoding_gaussian_matrix
        x, y = (2 * coords.float() - 1).split(1, dim=-1)
        angles = 2 * math.pi * (x * frequencies[0].float() + y * frequencies[1].float())
        return torch.cat([angles.sin(), angles.cos()], dim=-1).to(frequencies.dtype)


class PromptEncoder(nn.Module):
    """Encoder of points, boxes and masks for the mask decoder.

    Args:
        embed_dim: C.
        image_size: S, pixels.
        grid: side of the image embedding, cells.
        mask_channels: width of the convolutions over mask inputs.
        pad_boxes: append SAM's padding point to boxes too, as SAM 2 does.

    Attributes:
        takes_masks: whether a mask may be a prompt, or a part of one.
        takes_background: whether points may be labelled 0, background.
        max_points: points of one prompt at most, a box counting as two; None for any number.
    """

    takes_masks = True
    takes_background = True
    max_points: int | None = None

    def __init__(
        self, embed_dim: int, image_size: int, grid: int, mask_channels: int = 16, pad_boxes: bool = False
    ) -> None:
        super().__init__()
        self.pad_boxes = pad_boxes
        self.embed_dim = embed_dim
        self.image_size = image_size
        self.grid = grid
        self.pe_layer = FourierPositions(embed_dim // 2)
        self._build_embeddings(embed_dim, mask_channels)

    def _build_embeddings(self, embed_dim: int, mask_channels: int) -> None:
        """Build what is embedded beside positions."""
        # background point, foreground point, upper left and lower right corner of a box
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, embed_dim) for _ in range(4))
        self.not_a_point_embed = nn.Embedding(1, embed_dim)
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, mask_channels // 4, 2, stride=2),
            LayerNorm2d(mask_channels // 4, eps=1e-6),
            nn.GELU(),
            nn.Conv2d(mask_channels // 4, mask_channels, 2, stride=2),
            LayerNorm2d(mask_channels, eps=1e-6),
            nn.GELU(),
            nn.Conv2d(mask_channels, embed_dim, 1),
        )
        self.no_mask_embed = nn.Embedding(1, embed_dim)

    def image_positions(self) -> Tensor:
        """Return (1, C, S/16, S/16), the positional encoding of each cell of the image embedding."""
        centres = (
            torch.arange(self.grid, device=self.pe_layer.positional_encoding_gaussian_matrix.device) + 0.5
        ) / self.grid
        y, x = torch.meshgrid(centres, centres, indexing="ij")
        return self.pe_layer(torch.stack([x, y], dim=-1)).permute(2, 0, 1)[None]

    def forward(
        self,
        points: Tensor | None = None,
        labels: Tensor | None = None,
        boxes_xyxy: Tensor | None = None,
        mask_input: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Embed N prompts; coordinates are pixels of the model's input.

        Args:
            points: (N, P, 2) xy.
            labels: (N, P), 1 foreground, 0 background, -1 padding.
            boxes_xyxy: (N, 4).
            mask_input: (N, 1, S/4, S/4) logits.

        Returns:
            Sparse embeddings (N, ., C), and dense embeddings (N, C, S/16, S/16) or, without a mask input, one for all
            prompts: (1, C, S/16, S/16).
        """
        sparse: list[Tensor] = []
        if points is not None and labels is not None:
            sparse.append(self._embed_points(points, labels, pad=boxes_xyxy is None))
        if boxes_xyxy is not None:
            sparse.append(self._embed_boxes(boxes_xyxy))
            if self.pad_boxes:
                sparse.append(self.not_a_point_embed.weight.expand(len(boxes_xyxy), 1, -1))
        if mask_input is None:
            dense = self.no_mask_embed.weight[:, :, None, None].expand(1, -1, self.grid, self.grid)
        else:
            dense = self.mask_downscaling(mask_input.to(self.no_mask_embed.weight.dtype))
        if not sparse:
            sparse.append(dense.new_zeros(len(dense), 0, self.embed_dim))
        return torch.cat(sparse, dim=1), dense

    def embed_labelled(self, points: Tensor, labels: Tensor) -> Tensor:
        """Embed points and box corners by their labels alone, without padding, for export.

        Args:
            points: (N, P, 2) xy, pixels of the model's input.
            labels: (N, P) int64, 1 foreground, 0 background, -1 padding, 2 and 3 upper left and lower right of a box.

        Returns:
            Sparse embeddings (N, P, C).
        """
        table = torch.cat([self.not_a_point_embed.weight, self._embeddings(0, 1, 2, 3)])
        return self._with_positions(points, labels, table)

    def _embed_points(self, points: Tensor, labels: Tensor, pad: bool) -> Tensor:
        if pad:  # without a box SAM appends a padding point
            points = torch.cat([points, points.new_zeros(len(points), 1, 2)], dim=1)
            labels = torch.cat([labels, labels.new_full((len(labels), 1), PointLabel.PADDING)], dim=1)
        # the table excludes box corners, so that they get no gradient from a batch of points only
        table = torch.cat([self.not_a_point_embed.weight, self._embeddings(0, 1)])
        return self._with_positions(points, labels, table)

    def _with_positions(self, points: Tensor, labels: Tensor, table: Tensor) -> Tensor:
        positions = self.pe_layer((points + 0.5) / self.image_size)  # (N, P, C)
        is_point = (labels >= 0)[..., None]
        return torch.where(is_point, positions, 0.0) + table[labels.long() + 1]

    def _embed_boxes(self, boxes_xyxy: Tensor) -> Tensor:
        corners = self.pe_layer((boxes_xyxy.reshape(-1, 2, 2) + 0.5) / self.image_size)  # (N, 2, C)
        return corners + self._embeddings(2, 3)

    def _embeddings(self, *kinds: int) -> Tensor:
        """Stack point embeddings: (kinds, C)."""
        return torch.cat([self.point_embeddings[kind].weight for kind in kinds])  # pyright: ignore[reportArgumentType]
