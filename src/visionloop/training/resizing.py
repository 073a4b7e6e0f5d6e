"""Progressive resizing: a training that starts on smaller images and ends on those of full size.

What is learnt first, edges and coarse shapes, is there in smaller images too, and a step on three quarters of the sides
takes about half the time. From fast.ai's training of ImageNet (Howard 2018, https://www.fast.ai/posts/2018-08-10-fastai-diu-imagenet.html)
and the progressive learning of EfficientNetV2 (Tan and Le 2021, arXiv:2104.00298), without its growing regularisation.
Does not cover validation, which always sees images of full size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from visionloop.config import FamilyParams, TrainParams
from visionloop.errors import ConfigError
from visionloop.models import Classifier, build

Size = tuple[int, int]


def sizes(full: Size, multiple: int, params: TrainParams) -> list[Size]:
    """Height and width of the training images in each epoch, pixels.

    Sides grow in a line from `initial_scale` of the full ones to these, which they have from the share `full_scale_from`
    of the epochs on; smaller ones are rounded down to multiples of `multiple`, but not to none.
    """
    if params.initial_scale == 1:
        return [full] * params.epochs
    return [_size(full, multiple, params, epoch / params.epochs) for epoch in range(params.epochs)]


def _size(full: Size, multiple: int, params: TrainParams, done: float) -> Size:
    if done >= params.full_scale_from:
        return full
    scale = params.initial_scale + (1 - params.initial_scale) * done / params.full_scale_from
    height, width = (min(side, max(multiple, int(side * scale + 1e-9) // multiple * multiple)) for side in full)
    return height, width


def resized(images: Tensor, size: Size) -> Tensor:
    """Images uint8 [N, H, W, 3] in the size (height, width): bilinear, smoothed before they shrink, unless they have it."""
    if tuple(images.shape[1:3]) == size:
        return images
    maps = images.permute(0, 3, 1, 2)
    return F.interpolate(maps, size, mode="bilinear", antialias=True).permute(0, 2, 3, 1).contiguous()


def check_settings(settings: FamilyParams, full: Size, params: TrainParams) -> None:
    """As `check_sizes`, of a network that is built for it without memory for its weights.

    Raises:
        ConfigError: see `check_sizes` and `visionloop.models.build`.
    """
    if params.initial_scale == 1:
        return
    with torch.device("meta"):
        classifier = build(
            settings.architecture, num_classes=2, image_size=full, mean=(0.5,) * 3, std=(0.25,) * 3, options=settings.options
        )
    check_sizes(classifier, full, params)


def check_sizes(classifier: Classifier, full: Size, params: TrainParams) -> None:
    """Refuse a network that cannot take the smaller images of a training, and a scale that makes none.

    The classifier is left as it was.

    Raises:
        ConfigError: with the size.
    """
    if params.initial_scale == 1:
        return
    multiple = classifier.network.side_multiple
    smaller = sorted(set(sizes(full, multiple, params)) - {full})
    if not smaller:
        raise ConfigError(
            f"initial_scale is {params.initial_scale:g}, but images of {full[0]} x {full[1]} pixels have no smaller size "
            f"whose sides are multiples of {multiple}, which {classifier.architecture} wants; lower it, or set it to 1."
        )
    mode = classifier.training
    classifier.eval()
    try:
        _try(classifier, full)
        for height, width in smaller:
            try:
                _try(classifier, (height, width))
            except (RuntimeError, AssertionError, ValueError) as error:
                said = (str(error).splitlines() or [type(error).__name__])[0][:200]
                raise ConfigError(
                    f"initial_scale is {params.initial_scale:g}, but {classifier.architecture} cannot take images of "
                    f"{height} x {width} pixels ({said}); raise it, or set it to 1."
                ) from error
    finally:
        classifier.train(mode)


def _try(classifier: Classifier, size: Size) -> None:
    with torch.no_grad():
        classifier(torch.zeros(1, *size, 3, dtype=torch.uint8, device=classifier.mean.device))
