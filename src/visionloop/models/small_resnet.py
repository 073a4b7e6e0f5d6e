"""A small residual network for small images (8 to about 224 pixels), trained from scratch.

A stem of 3x3 (7x7 at a stride of 4), then stages of pre-activation residual blocks; each stage after the first halves the
map and doubles the channels (He et al. 2016, arXiv:1603.05027). Does not cover pretrained weights, of which there are none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from visionloop.errors import ConfigError
from visionloop.models.choices import CHOICES, activation, initialisation, initialise
from visionloop.models.network import (
    LEAST_MAP_SIDE,
    Family,
    GradcamLayer,
    Network,
    Option,
    both_views,
    mean_of_views,
    number,
    refuse_unknown,
    same,
    whole_number,
    with_mirror_images,
    yes_or_no,
)

NAME = "small_resnet"
OPTIONS = ("width", "blocks", "stages", "stem_stride", "dropout", "flip_average", *CHOICES)


# The gradient of torch 2.15's 1x1 convolution with a stride writes past its memory on a CPU with several threads, where it
# has 8 or 12 input channels and an odd batch. Below this width it runs without a stride on the positions that it would take.
_LEAST_STRIDED_CHANNELS = 16


class SmallResNet(Network):
    """The mean over the last map is the embedding; it has width * 2 ** (stages - 1) numbers."""

    family: Family = "cnn"

    def __init__(
        self,
        num_classes: int,
        *,
        image_side: int,
        width: int,
        blocks: int,
        stages: int,
        stem_stride: int,
        dropout: float,
        flip_average: bool,
        activation: Callable[[], nn.Module],
        initialisation: str | None,
    ) -> None:
        super().__init__()
        self.flip_average = flip_average
        reach = max(1, stem_stride - 1)  # a window of 2 reach + 1, so that no pixel is passed over
        self.stem = nn.Conv2d(3, width, 2 * reach + 1, stem_stride, reach, bias=False)
        layers: list[nn.Module] = []
        channels = width
        for stage in range(stages):
            for block in range(blocks):
                channels_in, channels = channels, width * 2**stage
                layers.append(_Block(channels_in, channels, 2 if stage > 0 and block == 0 else 1, activation))
        self.stages = nn.Sequential(*layers)
        sides = [-(-image_side // (stem_stride * 2**stage)) for stage in range(stages)]
        stage = max((stage for stage, side in enumerate(sides) if side >= LEAST_MAP_SIDE), default=0)
        self._gradcam_block = (stage + 1) * blocks - 1
        self.last = nn.Sequential(nn.BatchNorm2d(channels), activation())
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(channels, num_classes)
        if initialisation is not None:
            initialise(self, initialisation)
            return
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def embed(self, images: Tensor) -> Tensor:
        """Images float [N, 3, H, W] to float [N, D]; in eval mode, where `flip_average` is set, the mean of both views."""
        both = self.flip_average and not self.training
        count = images.shape[0]  # `len` would fix the batch of an exported graph
        if both:
            images = with_mirror_images(images)
        pooled: Tensor = self.dropout(self.last(self.stages(self.stem(images))).mean((2, 3)))
        return mean_of_views(pooled, count) if both else pooled

    def gradcam_layer(self) -> GradcamLayer:
        """The last block of the deepest stage whose map is large enough, else of the first stage."""
        return GradcamLayer(self.stages[self._gradcam_block], both_views if self.flip_average else same)


class _Block(nn.Module):
    """Norm, activation, convolution, twice, plus the input (through a 1x1 convolution where its shape changes)."""

    def __init__(self, channels_in: int, channels: int, stride: int, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.activation = activation()
        changes = stride != 1 or channels_in != channels
        self.skip = nn.Conv2d(channels_in, channels, 1, stride, bias=False) if changes else None

    def forward(self, maps: Tensor) -> Tensor:
        active = self.activation(self.norm1(maps))
        out: Tensor = self.conv2(self.activation(self.norm2(self.conv1(active))))
        return out + (maps if self.skip is None else self._shortcut(self.skip, active))

    def _shortcut(self, skip: nn.Conv2d, active: Tensor) -> Tensor:
        if self.training and skip.stride[0] > 1 and skip.in_channels < _LEAST_STRIDED_CHANNELS:
            return F.conv2d(active[:, :, :: skip.stride[0], :: skip.stride[1]], skip.weight)
        out: Tensor = skip(active)
        return out


def build(num_classes: int, image_size: tuple[int, int], options: Mapping[str, Option]) -> SmallResNet:
    """Build from `options`: `width` (channels of the first stage), `blocks` (a stage), `stages`, `stem_stride`, `dropout`,
    `flip_average` (answers in use are the mean over the image and its mirror image, at twice the work),
    `activation` (ReLU unless named) and `initialisation` (see `choices.initialise`; unless named, He's normal by fan_out).

    `stem_stride` 0 means 1 below 48 pixels, 2 below 128, else 4, so that the first stage, which costs most, works on at
    most about 64 x 64 positions.

    Raises:
        ConfigError: an option is unknown or out of its range, or the image is too small for the stages.
    """
    refuse_unknown(NAME, options, OPTIONS)
    stages = whole_number(NAME, options, "stages", default=3, low=1, high=6)
    stride = whole_number(NAME, options, "stem_stride", default=0, low=0, high=8)
    side = min(image_size)
    if stride == 0:
        stride = 1 if side < 48 else 2 if side < 128 else 4
    least = stride * 2 ** (stages - 1)
    if side < least:
        raise ConfigError(
            f"{NAME}: {stages} stages and a stem stride of {stride} need images of at least {least} pixels, got {side}; "
            "lower the option 'stages' or raise preprocess.height and preprocess.width."
        )
    return SmallResNet(
        num_classes,
        image_side=side,
        width=whole_number(NAME, options, "width", default=32, low=4, high=1024),
        blocks=whole_number(NAME, options, "blocks", default=1, low=1, high=16),
        stages=stages,
        stem_stride=stride,
        dropout=number(NAME, options, "dropout", default=0.0, low=0.0, below=1.0),
        flip_average=yes_or_no(NAME, options, "flip_average"),
        activation=activation(NAME, options, default="relu"),
        initialisation=initialisation(NAME, options),
    )
