"""A convolutional network for images of about 32 pixels that learns in few passes, trained from scratch.

Its parts are those of airbench94 and airbench96 (Jordan 2024, arXiv:2404.00498): a frozen 2x2 convolution that whitens
patches, three groups of convolutions with a maximum in place of strides, batch norms without a scale, and filters that
start as the identity. Answers may be averaged over the image and its mirror image, within the network, so that whatever
serves it answers the same. Does not cover: pretrained weights, which do not exist for it, and large images, whose first
group would take most of the time.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionloop.errors import ConfigError
from visionloop.models.network import (
    LEAST_MAP_SIDE,
    Family,
    GradcamLayer,
    Network,
    Option,
    both_views,
    number,
    refuse_unknown,
    same,
    whole_number,
    yes_or_no,
)

NAME = "speed_net"
OPTIONS = ("width", "width2", "width3", "convolutions", "flip_average", "bias_rate", "head_rate")
_GROUPS = 3
_PATCH = 2  # pixels a side of what is whitened
# One position less a side after the whitening, then halved, rounded down, by each group.
LEAST_SIDE = 2**_GROUPS + _PATCH - 1
# The author's; keeps directions without variance, of which JPEG's halved colours leave several, from becoming noise.
_WHITENING_EPSILON = 5e-4
_CHUNK = 500  # images whose patches lie in memory at once


class SpeedNet(Network):
    """The maximum over the last map is the embedding; it has `widths[2]` numbers."""

    family: Family = "cnn"

    def __init__(
        self,
        num_classes: int,
        *,
        image_side: int,
        widths: tuple[int, int, int],
        convolutions: int,
        flip_average: bool,
        bias_rate: float,
        head_rate: float,
    ) -> None:
        super().__init__()
        self.flip_average = flip_average
        self._rates = (bias_rate, head_rate)
        self.whiten = Whitening()
        channels = (self.whiten.out_channels, *widths)
        self.groups = nn.ModuleList(Group(channels[index], channels[index + 1], convolutions) for index in range(_GROUPS))
        sides = [(image_side - _PATCH + 1) // 2 ** (index + 1) for index in range(_GROUPS)]
        self._gradcam_group = max((index for index, side in enumerate(sides) if side >= LEAST_MAP_SIDE), default=0)
        self.head = nn.Linear(widths[-1], num_classes, bias=False)
        with torch.no_grad():
            # A maximum over non-negative maps is large; logits start small, and far from a wrong certainty.
            self.head.weight.div_(self.head.weight.std() * widths[-1])

    def embed(self, images: Tensor) -> Tensor:
        """Images float [N, 3, H, W] to float [N, D]; where `flip_average` is set and in eval mode, the mean of both views.

        The head is linear, so the mean embedding gives the mean logits.
        """
        both = self.flip_average and not self.training
        count = images.shape[0]  # `len` would fix the batch of an exported graph
        if both:
            images = torch.cat([images, images.flip(3)])
        maps = F.gelu(self.whiten(images))
        for group in self.groups:
            maps = group(maps)
        pooled = F.max_pool2d(maps, maps.shape[2:])
        if both:
            pooled = (pooled[:count] + pooled[count:]) / 2
        return pooled.flatten(1)

    def prepare(self, images: Tensor) -> None:
        """See `Whitening.prepare`."""
        self.whiten.prepare(images)

    def learning_rate_scales(self) -> Mapping[str, float]:
        """`bias_rate` for the biases of the norms, `head_rate` for the head."""
        bias_rate, head_rate = self._rates
        biases = {name: bias_rate for name, _ in self.named_parameters() if name.endswith(".bias")}
        return {**biases, "head.weight": head_rate}

    def after_step(self) -> None:
        """See `normalise_filters`."""
        normalise_filters(self.groups)

    def gradcam_layer(self) -> GradcamLayer:
        """The deepest group whose map is large enough, else the first."""
        return GradcamLayer(self.groups[self._gradcam_group], both_views if self.flip_average else same)


class Whitening(nn.Conv2d):
    """A frozen convolution of 2x2 whose filters are the principal directions of the images' patches, and their negatives.

    Images float [N, 3, H, W] to float [N, 24, H - 1, W - 1], each channel of variance 1 over the images of `prepare`.
    """

    def __init__(self) -> None:
        super().__init__(3, 2 * 3 * _PATCH**2, _PATCH, bias=False)
        self.weight.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Whitening divides by small deviations, and so blows up what bfloat16 rounds off; it takes a 400th of the work."""
        kind = images.device.type
        if kind == "meta" or not torch.is_autocast_enabled(kind):  # which knows no device "meta"
            return super().forward(images)
        with torch.autocast(kind, enabled=False):
            return super().forward(images).to(torch.get_autocast_dtype(kind))

    @torch.no_grad()
    def prepare(self, images: Tensor) -> None:
        """Set the filters to the principal directions of 2x2 patches over their deviations, and to their negatives.

        `images` float [N, 3, H, W], normalised; a few thousand are enough.
        """
        size = 3 * _PATCH**2
        moments = torch.zeros(size, size, dtype=torch.float64, device=images.device)
        count = 0
        for part in torch.split(images, _CHUNK):
            patches = F.unfold(part.float(), _PATCH).transpose(1, 2).reshape(-1, size).double()
            moments += patches.T @ patches
            count += len(patches)
        variances, directions = torch.linalg.eigh(moments / count)
        filters = (directions / torch.sqrt(variances + _WHITENING_EPSILON)).T.view(size, 3, _PATCH, _PATCH)
        self.weight.copy_(torch.cat([filters, -filters]))


@torch.no_grad()
def normalise_filters(groups: nn.Module) -> None:
    """Bring every trained filter bank back to the norm of as many unit vectors as it has filters.

    A batch norm follows each, so the answer stays the same; what changes is how far the next step of Muon, whose length
    does not depend on the weights, turns them.
    """
    for weight in groups.parameters():
        if weight.ndim == 4 and weight.requires_grad:
            weight.mul_(len(weight) ** 0.5 / weight.norm())


class Group(nn.Module):
    """A convolution, a maximum over 2x2, norm and GELU; then convolutions, each with norm and GELU.

    With three convolutions the last two are bridged by a residual connection, as in airbench96.
    """

    def __init__(self, channels_in: int, channels: int, convolutions: int) -> None:
        super().__init__()
        widths = (channels_in, *[channels] * (convolutions - 1))
        self.convolutions = nn.ModuleList(nn.Conv2d(width, channels, 3, padding=1, bias=False) for width in widths)
        self.norms = nn.ModuleList(_norm(channels) for _ in widths)
        for convolution in self.convolutions:
            assert isinstance(convolution, nn.Conv2d)
            with torch.no_grad():  # as many filters as there are channels to pass on; the others stay random
                nn.init.dirac_(convolution.weight[: convolution.in_channels])

    def forward(self, maps: Tensor) -> Tensor:
        halved = F.max_pool2d(self.convolutions[0](maps), 2)
        maps = F.gelu(self.norms[0](halved))
        first = maps
        for index in range(1, len(self.convolutions)):
            maps = self.norms[index](self.convolutions[index](maps))
            if index == len(self.convolutions) - 1 and index > 1:
                maps = maps + first
            maps = F.gelu(maps)
        return maps


def _norm(channels: int) -> nn.BatchNorm2d:
    """A norm whose scale stays 1: the next convolution can do what it would."""
    norm = nn.BatchNorm2d(channels)
    norm.weight.requires_grad_(False)
    return norm


def build(num_classes: int, image_size: tuple[int, int], options: Mapping[str, Option]) -> SpeedNet:
    """Build from `options`: `width`, `width2`, `width3` (channels of the groups), `convolutions` (2 or 3 a group),
    `flip_average`, and `bias_rate` and `head_rate` (times the learning rate of the filters).

    `width2` is 4 times `width` unless named, `width3` as `width2`. The defaults are airbench94's, whose rates are for SGD.

    Raises:
        ConfigError: an option is unknown or out of its range, or the image is too small for three halvings.
    """
    refuse_unknown(NAME, options, OPTIONS)
    side = min(image_size)
    if side < LEAST_SIDE:
        raise ConfigError(
            f"{NAME}: three halvings need images of at least {LEAST_SIDE} pixels, got {side}; raise preprocess.height and "
            "preprocess.width, or take small_resnet."
        )
    width = whole_number(NAME, options, "width", default=64, low=24, high=1024)
    width2 = whole_number(NAME, options, "width2", default=4 * width, low=24, high=4096)
    return SpeedNet(
        num_classes,
        image_side=side,
        widths=(width, width2, whole_number(NAME, options, "width3", default=width2, low=24, high=4096)),
        convolutions=whole_number(NAME, options, "convolutions", default=2, low=2, high=3),
        flip_average=yes_or_no(NAME, options, "flip_average"),
        bias_rate=number(NAME, options, "bias_rate", default=64.0, low=0.0, below=1e5),
        head_rate=number(NAME, options, "head_rate", default=1.0, low=0.0, below=1e5),
    )
