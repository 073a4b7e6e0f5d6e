"""Images changed by a few levels so that the model errs, to train on and to measure with.

The attacks know the model's gradients and may change every channel of every pixel by `adversarial_epsilon` levels of 255.

While an attack looks for its images the model is in eval mode, and each module is put back into its own mode afterwards: the
attack sees the network that will be used, no statistics of a batch norm are drawn from half-made images, dropout draws no
number, and an image's attack does not depend on the others of its batch (Pang et al. 2021, arXiv:2010.00467, find the modes
equal in robustness and eval mode better on clean images). `free` is the exception, since its gradients are the training
step's own.

Does not cover: changes of another measure than the largest one of a pixel, and attacks that see answers only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionloop.config import TrainParams

# Of the logits, a mean over the images; what an attack raises.
Objective = Callable[[Tensor], Tensor]

# The step that Wong et al. 2020 (arXiv:2001.03994) take after a random start, in epsilons.
_FGSM_STEP = 1.25
# All steps together, in epsilons: enough to cross the ball from any place in it (Madry et al. 2018, arXiv:1706.06083).
_PGD_REACH = 2.5


class Adversary:
    """The attack that the section `train` names.

    >>> adversary = Adversary(params)
    >>> attacked = adversary.attack(model, batch.images, lambda logits: loss(logits, batch), generator)
    """

    def __init__(self, params: TrainParams) -> None:
        self._kind = params.adversarial
        self._epsilon = params.adversarial_epsilon
        self._steps = params.adversarial_steps

    @property
    def replays(self) -> int:
        """How many steps of the optimizer a batch is good for: `adversarial_steps` of them in "free", else one."""
        return self._steps if self._kind == "free" else 1

    def attack(self, model: nn.Module, images: Tensor, objective: Objective, generator: torch.Generator) -> Tensor:
        """Images uint8 [N, H, W, 3] as float32 [N, H, W, 3] in 0..255, changed by "fgsm" or "pgd" so that `objective` rises.

        Gradients that lie in the parameters stay as they are. Both attacks start at a random place within epsilon, drawn
        from `generator` on the generator's own device. FGSM without that start teaches a model to hide its gradients, and
        with it may still do so in long trainings (arXiv:2001.03994): measure with `accuracy_under_attack`.
        """
        assert self._kind in ("fgsm", "pgd"), self._kind
        if self._kind == "fgsm":
            size = _FGSM_STEP * self._epsilon
            return _ascend(model, images, objective, generator, epsilon=self._epsilon, steps=1, step_size=size)
        return pgd(model, images, objective, generator, epsilon=self._epsilon, steps=self._steps)

    def free_steps(self, images: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
        """The versions of a batch uint8 [N, H, W, 3] to step on one after another, each float32 [N, H, W, 3] in 0..255.

        Each asks for its gradient, which the caller's backward pass for the weights brings along and which makes the next
        version: an attack that costs nothing (Shafahi et al. 2019, arXiv:1904.12843). There a batch starts with the changes
        of the batch before; here at a random place, which is as good (arXiv:2001.03994) and leaves no state behind.

        >>> for attacked in adversary.free_steps(batch.images, generator):
        ...     loss(model(attacked)[0], batch).backward()
        ...     optimizer.step(rate)
        """
        ball = _Ball(images, self._epsilon)
        attacked = ball.random(generator).requires_grad_()
        for replay in range(self._steps):
            yield attacked
            if replay + 1 < self._steps:
                assert attacked.grad is not None, "a version was not used in a backward pass"
                attacked = ball.step(attacked.detach(), attacked.grad, self._epsilon).requires_grad_()


def pgd(
    model: nn.Module, images: Tensor, objective: Objective, generator: torch.Generator, *, epsilon: float, steps: int
) -> Tensor:
    """Projected gradient ascent from a random start (arXiv:1706.06083) with steps of 2.5 * epsilon / `steps`.

    Images uint8 or float [N, H, W, 3] in 0..255 to float32 of the same shape, each value within `epsilon` of its own.
    """
    size = _PGD_REACH * epsilon / steps
    return _ascend(model, images, objective, generator, epsilon=epsilon, steps=steps, step_size=size)


def _ascend(
    model: nn.Module,
    images: Tensor,
    objective: Objective,
    generator: torch.Generator,
    *,
    epsilon: float,
    steps: int,
    step_size: float,
) -> Tensor:
    """`steps` steps of `step_size` levels along the sign of the objective's gradient, kept within `epsilon` and 0..255."""
    ball = _Ball(images, epsilon)
    attacked = ball.random(generator)
    with _eval_mode(model), torch.enable_grad():
        for _ in range(steps):
            attacked.requires_grad_()
            logits, _ = model(attacked)
            (gradient,) = torch.autograd.grad(objective(logits), attacked)
            attacked = ball.step(attacked.detach(), gradient, step_size)
    return attacked


def accuracy_under_attack(
    model: nn.Module, images: Tensor, labels: Tensor, *, epsilon: float, steps: int, seed: int = 0, batch_size: int = 256
) -> float:
    """The share of images uint8 [N, H, W, 3] that the model, in eval mode, still answers rightly under PGD.

    `labels` are int64 [N]. The attack raises the cross-entropy; a stronger one would leave less, so this is an upper bound.
    """
    generator = torch.Generator().manual_seed(seed)
    right = 0
    for part, wanted in zip(torch.split(images, batch_size), torch.split(labels, batch_size), strict=True):

        def objective(logits: Tensor, wanted: Tensor = wanted) -> Tensor:
            return F.cross_entropy(logits, wanted)

        attacked = pgd(model, part, objective, generator, epsilon=epsilon, steps=steps)
        with _eval_mode(model), torch.no_grad():
            right += int((model(attacked)[0].argmax(1) == wanted).sum())
    return right / len(labels)


class _Ball:
    """All images within epsilon levels of the given ones, and within 0..255."""

    def __init__(self, images: Tensor, epsilon: float) -> None:
        self._images, self._epsilon = images.to(torch.float32), epsilon
        self._low, self._high = (self._images - epsilon).clamp_min(0), (self._images + epsilon).clamp_max(255)

    def random(self, generator: torch.Generator) -> Tensor:
        noise = torch.rand(self._images.shape, generator=generator, device=generator.device).to(self._images.device)
        return (self._images + (2 * noise - 1) * self._epsilon).clamp(self._low, self._high)

    def step(self, images: Tensor, gradient: Tensor, size: float) -> Tensor:
        return torch.add(images, gradient.sign(), alpha=size).clamp(self._low, self._high)


@contextlib.contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """Every module in eval mode, and afterwards each in the mode that it had, as a frozen norm in eval mode."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
