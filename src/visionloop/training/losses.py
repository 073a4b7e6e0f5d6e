"""What a training minimises: cross-entropy, focal loss or yes and no per class, with weights of classes, or with a teacher.

Every loss here is a mean over images, so that losses of parts of a batch add up by the parts' sizes: over accumulated
batches and over processes. A class weight therefore multiplies an image's loss and is not divided by the weights of the
batch, as torch's own `reduction="mean"` does; instead the mean of the weights over the training images is 1.

Does not cover: reading data sets in which an image has several labels. `multi_label` is the loss for them.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from visionloop.config import TrainParams
from visionloop.errors import ConfigError
from visionloop.training.batches import Batch

# Cui et al. 2019 (arXiv:1901.05555) take 0.999 for iNaturalist and ImageNet and 0.9 to 0.9999 on CIFAR: a class's thousandth
# image still shows something new, its ten thousandth does not.
_EFFECTIVE_BETA = 0.999
# From this share of a CutMix image on, a class counts as there; timm's `bce_target_thresh` is made for the same question.
_THERE = 0.2


class Loss:
    """The loss that the section `train` names, for the classes of one data set.

    `class_counts` int64 [K] are the training images of each class, variants included.

    >>> loss = Loss(params, torch.tensor([90, 10]), torch.device("cpu"))
    >>> loss(logits, batch).backward()
    """

    def __init__(self, params: TrainParams, class_counts: Tensor, device: torch.device) -> None:
        self._params = params
        weights = class_weights(params.class_weights, class_counts)
        self._weights = None if weights is None else weights.to(device)

    def __call__(self, logits: Tensor, batch: Batch, teacher_logits: Tensor | None = None) -> Tensor:
        """The mean loss of logits float32 [N, K]: a scalar.

        Mixed images count with both of their labels, each by its share. With `teacher_logits` float32 [N, K], the answers of
        a teacher to the same images before any attack, `distillation_share` of the loss is `distillation`.

        Raises:
            ConfigError: the images are mixed and the loss is focal, see `config.Params`.
        """
        own = self._hard(logits, batch)
        share = self._params.distillation_share
        if teacher_logits is None or share == 0:
            return own
        return (1 - share) * own + share * distillation(logits, teacher_logits, self._params.distillation_temperature)

    def _hard(self, logits: Tensor, batch: Batch) -> Tensor:
        params, weights = self._params, self._weights
        match params.loss:
            case "cross_entropy":
                return batch.loss(
                    lambda labels: F.cross_entropy(
                        logits, labels, weights, label_smoothing=params.label_smoothing, reduction="none"
                    )
                )
            case "focal":
                if batch.partners is not None:
                    raise ConfigError(
                        "train.loss is 'focal', but the packed training images are mixed with one another (augment.mixup, "
                        "augment.cutmix); run `dvc repro` after setting both to 0, or take cross_entropy."
                    )
                return focal(logits, batch.labels, params.focal_gamma, weights, params.label_smoothing).mean()
            case "bce":
                shares = batch.soft_targets(logits.shape[1])
                rows = multi_label(logits, (shares >= _THERE).float(), params.label_smoothing)
                return (rows if weights is None else rows * (shares @ weights)).mean()


def focal(
    logits: Tensor, labels: Tensor, gamma: float, weights: Tensor | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """Cross-entropy times (1 - p) ** gamma, where p is the label's probability: float32 [N]; easy images count little.

    Lin et al. 2017 (arXiv:1708.02002), here over a softmax of all classes, logits float32 [N, K] and labels int64 [N].
    `weights` float32 [K] are the paper's alpha. With gamma 0 it is cross-entropy, smoothing included.
    """
    missing = -torch.expm1(F.log_softmax(logits, 1).gather(1, labels[:, None])[:, 0])
    # At exactly 0 the derivative of a power below 1 is infinite.
    missing = missing.clamp_min(torch.finfo(logits.dtype).eps)
    return missing**gamma * F.cross_entropy(logits, labels, weights, label_smoothing=label_smoothing, reduction="none")


def multi_label(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Each class by itself, yes or no: the mean over the classes of the binary cross-entropy of a sigmoid, float32 [N].

    `targets` float32 [N, K] of [0, 1] are multi-hot: an image may show several classes, or none. Smoothing takes
    `label_smoothing` of each target and adds it in equal parts to all classes, as it does in cross-entropy; with half for
    yes and half for no, the many classes that an image does not show would outweigh the one that it does.
    """
    targets = targets * (1 - label_smoothing) + label_smoothing / logits.shape[1]
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1)


def distillation(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """How far the softened answers are from the teacher's, both float32 [N, K]: a scalar, the mean over the images.

    The Kullback-Leibler divergence of the softmax at `temperature`, times its square, so that the gradient of a logit,
    temperature * (student - teacher) / N, keeps its size beside that of the labels (Hinton et al. 2015, arXiv:1503.02531).
    """
    student = F.log_softmax(logits / temperature, 1)
    teacher = F.log_softmax(teacher_logits.detach() / temperature, 1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def class_weights(kind: Literal["none", "balanced", "effective"], class_counts: Tensor) -> Tensor | None:
    """Weights float32 [K] of classes with `class_counts` int64 [K] images, whose mean over all images is 1; None for none.

    balanced: in inverse proportion to the images. effective: to the effective number (1 - b ** n) / (1 - b) of n images with
    b = 0.999 (Cui et al. 2019, arXiv:1901.05555), which stops growing where more images show nothing new. A class without an
    image has the weight 0.
    """
    if kind == "none":
        return None
    counts = class_counts.to("cpu", torch.float64)
    numbers = counts if kind == "balanced" else (1 - _EFFECTIVE_BETA**counts) / (1 - _EFFECTIVE_BETA)
    weights = torch.where(counts > 0, 1 / numbers, 0)
    return (weights * counts.sum() / (weights * counts).sum()).float()
