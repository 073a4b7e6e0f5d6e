"""A small vision transformer for small images (8 to about 224 pixels), trained from scratch.

Pre-norm blocks, learnt positions, and the mean over the patches in place of a class token, which trains better on few
images (Beyer et al. 2022, arXiv:2205.01580). Does not cover pretrained weights, which do not exist for it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionloop.errors import ConfigError
from visionloop.models.network import (
    Family,
    GradcamLayer,
    Network,
    Option,
    number,
    refuse_unknown,
    tokens_as_map,
    whole_number,
)

NAME = "small_vit"
OPTIONS = ("patch", "width", "depth", "heads", "mlp_ratio", "dropout", "stem")
# Attention grows with the square of the patches: at 4,096 of them one head's table for one image has 64 MB.
MAX_PATCHES = 4096


class SmallViT(Network):
    """The normed mean over the patches is the embedding; it has `width` numbers."""

    family: Family = "vit"

    def __init__(
        self,
        num_classes: int,
        *,
        image_size: tuple[int, int],
        patch: int,
        width: int,
        depth: int,
        heads: int,
        mlp_ratio: int,
        dropout: float,
        conv_stem: bool,
    ) -> None:
        super().__init__()
        self.grid = (image_size[0] // patch, image_size[1] // patch)
        self.stem = _conv_stem(patch, width) if conv_stem else nn.Conv2d(3, width, patch, patch)
        self.positions = nn.Parameter(torch.empty(1, self.grid[0] * self.grid[1], width))
        self.blocks = nn.Sequential(*(_Block(width, heads, mlp_ratio, dropout) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)
        nn.init.trunc_normal_(self.positions, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def embed(self, images: Tensor) -> Tensor:
        """Images float [N, 3, H, W] to float [N, D]."""
        tokens = self.stem(images).flatten(2).transpose(1, 2) + self.positions
        pooled: Tensor = self.norm(self.blocks(tokens)).mean(1)
        return pooled

    def gradcam_layer(self) -> GradcamLayer:
        """The first block's first norm: the patches before any attention has mixed them."""
        first = self.blocks[0]
        assert isinstance(first, _Block)
        return GradcamLayer(first.norm1, lambda tokens: tokens_as_map(tokens, self.grid), places=(1,))


class _Block(nn.Module):
    """Pre-norm self-attention and a two-layer perceptron, each with a residual connection."""

    def __init__(self, width: int, heads: int, mlp_ratio: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.widen = nn.Linear(width, mlp_ratio * width)
        self.narrow = nn.Linear(mlp_ratio * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        count, width = tokens.shape[1:]
        qkv = self.qkv(self.norm1(tokens)).reshape(-1, count, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [N, heads, T, D / heads]
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        tokens = tokens + self.dropout(self.project(mixed))
        out: Tensor = tokens + self.dropout(self.narrow(F.gelu(self.widen(self.norm2(tokens)))))
        return out


def _conv_stem(patch: int, width: int) -> nn.Module:
    """A 3x3 convolution of stride 2 for each halving down to the patch grid, then a 1x1.

    Xiao et al. 2021, arXiv:2106.14881.
    """
    layers: list[nn.Module] = []
    channels = 3
    for left in reversed(range(patch.bit_length() - 1)):
        channels_in, channels = channels, max(width // 2**left, 16)
        layers += [nn.Conv2d(channels_in, channels, 3, 2, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(channels, width, 1))


def build(num_classes: int, image_size: tuple[int, int], options: Mapping[str, Option]) -> SmallViT:
    """Build from `options`: `patch` (pixels), `width`, `depth`, `heads`, `mlp_ratio`, `dropout`, `stem`.

    The stem "patch" is one convolution with the patch as its stride; "conv" halves the image by overlapping convolutions
    down to the same grid, which learns more from few images and wants `patch` to be a power of two.

    Raises:
        ConfigError: an option is unknown or out of its range, or the image cannot be cut into such patches.
    """
    refuse_unknown(NAME, options, OPTIONS)
    height, width_pixels = image_size
    patch = whole_number(NAME, options, "patch", default=4, low=1, high=64)
    if height % patch or width_pixels % patch:
        raise ConfigError(
            f"{NAME}: images of {height} x {width_pixels} pixels cannot be cut into patches of {patch}; "
            "make preprocess.height and preprocess.width multiples of the option 'patch'."
        )
    patches = (height // patch) * (width_pixels // patch)
    if patches > MAX_PATCHES:
        raise ConfigError(
            f"{NAME}: patches of {patch} cut images of {height} x {width_pixels} pixels into {patches}, and attention over "
            f"more than {MAX_PATCHES} does not fit in memory; use a larger 'patch'."
        )
    width = whole_number(NAME, options, "width", default=96, low=8, high=4096)
    heads = whole_number(NAME, options, "heads", default=4, low=1, high=64)
    if width % heads:
        raise ConfigError(f"{NAME}: width {width} is no multiple of heads {heads}; change one of the two options.")
    stem = options.get("stem", "patch")
    if stem not in ("patch", "conv"):
        raise ConfigError(f"{NAME}: option 'stem' is {stem!r}; it must be 'patch' or 'conv'.")
    if stem == "conv" and patch & (patch - 1):
        raise ConfigError(f"{NAME}: the stem 'conv' halves the image again and again; make 'patch' {patch} a power of two.")
    return SmallViT(
        num_classes,
        image_size=image_size,
        patch=patch,
        width=width,
        depth=whole_number(NAME, options, "depth", default=4, low=1, high=64),
        heads=heads,
        mlp_ratio=whole_number(NAME, options, "mlp_ratio", default=2, low=1, high=8),
        dropout=number(NAME, options, "dropout", default=0.0, low=0.0, below=1.0),
        conv_stem=stem == "conv",
    )
