"""A small vision transformer for small images (8 to about 224 pixels), trained from scratch.

Pre-norm blocks, learnt positions, and the mean over the patches in place of a class token, which trains better on few
images (Beyer et al. 2022, arXiv:2205.01580). With the stem "tokenizer", the pooling "sequence" and a stochastic depth it is
the Compact Convolutional Transformer of Hassani et al. 2021, arXiv:2104.05704. With the stem "whitened" it starts as the
speed-run network does, and learns in few passes. Does not cover pretrained weights, which do
not exist for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionloop.errors import ConfigError
from visionloop.models.choices import CHOICES, activation, initialisation, initialise
from visionloop.models.network import (
    Attention,
    AttentionLayer,
    Family,
    GradcamLayer,
    Network,
    Option,
    both_views,
    chosen,
    mean_of_views,
    number,
    refuse_unknown,
    tokens_as_map,
    whole_number,
    with_mirror_images,
    yes_or_no,
)
from visionloop.models.speed_net import Group, Whitening, normalise_filters

NAME = "small_vit"
OPTIONS = (
    "patch", "width", "depth", "heads", "mlp_ratio", "dropout", "stem", "stem_width", "stem_rate", "stem_bias_rate",
    "pooling", "stochastic_depth", "flip_average",
    *CHOICES,
)  # fmt: skip
STEMS = ("patch", "conv", "tokenizer", "whitened")
POOLINGS = ("mean", "sequence")
# Attention grows with the square of the patches: at 4,096 of them one head's table for one image has 64 MB.
MAX_PATCHES = 4096


class SmallViT(Network):
    """The pooled, normed tokens are the embedding; it has `width` numbers."""

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
        stem: str,
        stem_width: int,
        stem_rate: float,
        stem_bias_rate: float,
        pooling: str,
        stochastic_depth: float,
        flip_average: bool,
        activation: Callable[[], nn.Module] | None,
        initialisation: str | None,
    ) -> None:
        super().__init__()
        self.flip_average = flip_average
        self.side_multiple = -(-self.side_multiple // patch) * patch
        self._stem_rates = (stem_rate, stem_bias_rate)
        sides = image_size
        if stem == "whitened":
            self.stem: nn.Module = _WhitenedStem(patch, stem_width, width)
            sides = (image_size[0] - 1, image_size[1] - 1)  # what a 2x2 convolution leaves
        else:
            makers = {"patch": _patch_stem, "conv": _conv_stem, "tokenizer": _tokenizer}
            self.stem = makers[stem](patch, width, activation or nn.ReLU)
        self.grid = (sides[0] // patch, sides[1] // patch)
        self.positions = nn.Parameter(torch.empty(1, self.grid[0] * self.grid[1], width))
        self.blocks = nn.Sequential(
            *(
                _Block(
                    width,
                    heads,
                    mlp_ratio,
                    dropout,
                    skipped=stochastic_depth * block / max(1, depth - 1),
                    activation=activation or nn.GELU,
                )
                for block in range(depth)
            )
        )
        self.norm = nn.LayerNorm(width)
        # One number for a token: how much it counts. Absent, all count the same.
        self.weigh = nn.Linear(width, 1) if pooling == "sequence" else None
        self.head = nn.Linear(width, num_classes)
        nn.init.trunc_normal_(self.positions, std=0.02)
        if initialisation is not None:
            initialise(self.blocks if stem == "whitened" else self, initialisation)
            return
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def embed(self, images: Tensor) -> Tensor:
        """Images float [N, 3, H, W] to float [N, D]; in eval mode, where `flip_average` is set, the mean of both views."""
        both = self.flip_average and not self.training
        count = images.shape[0]  # `len` would fix the batch of an exported graph
        if both:
            images = with_mirror_images(images)
        maps = self.stem(images)
        tokens = maps.flatten(2).transpose(1, 2) + self._positions(maps.shape[2], maps.shape[3])
        tokens = self.norm(self.blocks(tokens))
        if self.weigh is None:
            pooled: Tensor = tokens.mean(1)
        else:
            pooled = (self.weigh(tokens).softmax(1).transpose(1, 2) @ tokens).squeeze(1)
        return mean_of_views(pooled, count) if both else pooled

    def _positions(self, height: int, width: int) -> Tensor:
        """The positions [1, height * width, D] of a grid; those of images of another size are interpolated."""
        if (height, width) == self.grid:
            return self.positions
        maps = F.interpolate(tokens_as_map(self.positions, self.grid), (height, width), mode="bicubic", antialias=True)
        return maps.flatten(2).transpose(1, 2)

    def prepare(self, images: Tensor) -> None:
        """With the stem "whitened", see `Whitening.prepare`."""
        if isinstance(self.stem, _WhitenedStem):
            self.stem.whiten.prepare(images)

    def learning_rate_scales(self) -> Mapping[str, float]:
        """With the stem "whitened", `stem_rate` for its filters and `stem_bias_rate` for the biases of its norms."""
        if not isinstance(self.stem, _WhitenedStem):
            return {}
        of_filters, of_biases = self._stem_rates
        trained = ((name, weight) for name, weight in self.stem.groups.named_parameters() if weight.requires_grad)
        return {f"stem.groups.{name}": of_filters if weight.ndim == 4 else of_biases for name, weight in trained}

    def after_step(self) -> None:
        """With the stem "whitened", see `normalise_filters`."""
        if isinstance(self.stem, _WhitenedStem):
            normalise_filters(self.stem.groups)

    def gradcam_layer(self) -> GradcamLayer:
        """The first block's first norm: the patches before any attention has mixed them."""
        first = self.blocks[0]
        assert isinstance(first, _Block)

        def to_map(tokens: Tensor) -> Tensor:
            maps = tokens_as_map(tokens, self.grid)
            return both_views(maps) if self.flip_average else maps

        return GradcamLayer(first.norm1, to_map, places=(1,))

    def prunable(self) -> list[nn.Module]:
        """The first layer of every perceptron: what all blocks add to the tokens must keep its width."""
        return [block.widen for block in self.blocks if isinstance(block, _Block)]

    def attention(self) -> Attention:
        """Every block's."""
        layers = []
        for block in self.blocks:
            assert isinstance(block, _Block)
            weights = (block.qkv.weight, block.qkv.bias, block.project.weight)
            layers.append(AttentionLayer(block.qkv, block.project, block.heads, *weights))
        return Attention(tuple(layers), "mean" if self.weigh is None else self.weigh)


class _Block(nn.Module):
    """Pre-norm self-attention and a two-layer perceptron, each with a residual connection."""

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_ratio: int,
        dropout: float,
        *,
        skipped: float,
        activation: Callable[[], nn.Module],
    ) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.widen = nn.Linear(width, mlp_ratio * width)
        self.narrow = nn.Linear(mlp_ratio * width, width)
        self.activation = activation()
        self.dropout = nn.Dropout(dropout)
        self.skip = _Skip(skipped)

    def forward(self, tokens: Tensor) -> Tensor:
        count, width = tokens.shape[1:]
        qkv = self.qkv(self.norm1(tokens)).reshape(-1, count, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [N, heads, T, D / heads]
        mixed = _attend(query, key, value).transpose(1, 2).flatten(2)
        tokens = tokens + self.skip(self.dropout(self.project(mixed)))
        out: Tensor = tokens + self.skip(self.dropout(self.narrow(self.activation(self.widen(self.norm2(tokens))))))
        return out


class _Skip(nn.Module):
    """Stochastic depth (Huang et al. 2016, arXiv:1603.09382): in training, leaves a branch out for a share of the images.

    What stays is divided by its probability, so that the mean is the same as in use, where nothing is left out.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, tokens: Tensor) -> Tensor:
        if not self.training or self.share == 0:
            return tokens
        kept = torch.empty((len(tokens), 1, 1), dtype=tokens.dtype, device=tokens.device).bernoulli_(1 - self.share)
        thinned: Tensor = tokens * kept.div_(1 - self.share)
        return thinned


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention over [N, heads, T, D] in torch's kernel, or in plain products where that is faster.

    On a CPU, torch's kernel in bfloat16 takes four times as long forwards and backwards (64 tokens, 4 heads of 48).
    """
    if query.dtype == torch.bfloat16 and query.device.type == "cpu":
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
        mixed: Tensor = scores.softmax(-1) @ value
        return mixed
    return F.scaled_dot_product_attention(query, key, value)


def _patch_stem(patch: int, width: int, _activation: Callable[[], nn.Module]) -> nn.Module:
    """One convolution with the patch as its stride."""
    return nn.Conv2d(3, width, patch, patch)


def _conv_stem(patch: int, width: int, activation: Callable[[], nn.Module]) -> nn.Module:
    """A 3x3 convolution of stride 2 for each halving down to the patch grid, then a 1x1.

    Xiao et al. 2021, arXiv:2106.14881.
    """
    layers: list[nn.Module] = []
    channels = 3
    for left in reversed(range(patch.bit_length() - 1)):
        channels_in, channels = channels, max(width // 2**left, 16)
        layers += [nn.Conv2d(channels_in, channels, 3, 2, 1, bias=False), nn.BatchNorm2d(channels), activation()]
    return nn.Sequential(*layers, nn.Conv2d(channels, width, 1))


def _tokenizer(patch: int, width: int, activation: Callable[[], nn.Module]) -> nn.Module:
    """A 3x3 convolution, a 3x3 pooling of stride 2 and the activation for each halving down to the grid.

    Hassani et al. 2021, arXiv:2104.05704, whose layers before the last have 64 channels too. The paper pools after the
    ReLU, which gives the same (the largest of what a rising function gives comes from the largest) at four times the work.
    """
    layers: list[nn.Module] = []
    channels = 3
    for left in reversed(range(patch.bit_length() - 1)):
        channels_in, channels = channels, 64 if left else width
        layers += [nn.Conv2d(channels_in, channels, 3, 1, 1, bias=False), nn.MaxPool2d(3, 2, 1), activation()]
    return nn.Sequential(*layers)


class _WhitenedStem(nn.Module):
    """The start of the speed-run network (Jordan 2024, arXiv:2404.00498): whitened patches, a group for each halving."""

    def __init__(self, patch: int, stem_width: int, width: int) -> None:
        super().__init__()
        self.whiten = Whitening()
        halvings = patch.bit_length() - 1
        channels = (self.whiten.out_channels, *[stem_width] * (halvings - 1), width)
        self.groups = nn.Sequential(*(Group(before, after, 2) for before, after in pairwise(channels)))

    def forward(self, images: Tensor) -> Tensor:
        maps: Tensor = self.groups(F.gelu(self.whiten(images)))
        return maps


def build(num_classes: int, image_size: tuple[int, int], options: Mapping[str, Option]) -> SmallViT:
    """Build from `options`: `patch` (pixels), `width`, `depth`, `heads`, `mlp_ratio`, `dropout`, `stem`, `stem_width`,
    `stem_rate`, `stem_bias_rate`, `pooling`, `stochastic_depth`, `activation` (unless named, ReLU in the stem and GELU in
    the blocks; the stem "whitened" has GELU) and `initialisation` (see `choices.initialise`; unless named, Xavier's uniform
    for linear layers and torch's own for convolutions; the stem "whitened" keeps its filters).

    The stem "patch" is one convolution with the patch as its stride. "conv" halves the image by overlapping convolutions of
    stride 2 down to the same grid, "tokenizer" by convolutions and poolings, "whitened" by whitened patches and two
    convolutions with norms and GELU a halving, all but the last `stem_width` wide, down to a grid of (side - 1) // patch;
    its filters, which keep their norm, learn at `stem_rate` times the learning rate, the biases of its norms at
    `stem_bias_rate` times. These three learn more from few images and want `patch` to be a power of two. The pooling
    "sequence" lets the network weigh the tokens, "mean" takes all alike. `stochastic_depth` is the share of images for which
    the last block is left out in training; the first never is. With `flip_average`, answers in use are the mean over the
    image and its mirror image, at twice the work.

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
    stem = chosen(NAME, options, "stem", STEMS, default="patch")
    if stem != "patch" and patch & (patch - 1):
        raise ConfigError(
            f"{NAME}: the stem '{stem}' halves the image again and again; make 'patch' {patch} a power of two."
        )
    if stem in ("tokenizer", "whitened") and patch == 1:
        raise ConfigError(f"{NAME}: the stem '{stem}' halves the image at least once; make 'patch' 2 or more.")
    if stem == "whitened" and min(image_size) <= patch:
        raise ConfigError(
            f"{NAME}: the stem 'whitened' leaves no patch of images of {height} x {width_pixels} pixels and a 'patch' of "
            f"{patch}; make 'patch' smaller."
        )
    return SmallViT(
        num_classes,
        image_size=image_size,
        patch=patch,
        width=width,
        depth=whole_number(NAME, options, "depth", default=4, low=1, high=64),
        heads=heads,
        mlp_ratio=whole_number(NAME, options, "mlp_ratio", default=2, low=1, high=8),
        dropout=number(NAME, options, "dropout", default=0.0, low=0.0, below=1.0),
        stem=stem,
        stem_width=whole_number(NAME, options, "stem_width", default=64, low=24, high=1024),
        stem_rate=number(NAME, options, "stem_rate", default=1.0, low=0.0, below=1e5),
        stem_bias_rate=number(NAME, options, "stem_bias_rate", default=1.0, low=0.0, below=1e5),
        pooling=chosen(NAME, options, "pooling", POOLINGS, default="mean"),
        stochastic_depth=number(NAME, options, "stochastic_depth", default=0.0, low=0.0, below=1.0),
        flip_average=yes_or_no(NAME, options, "flip_average"),
        activation=activation(NAME, options) if "activation" in options else None,
        initialisation=initialisation(NAME, options),
    )
