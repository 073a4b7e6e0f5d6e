"""Images changed by a few levels so that a model errs: what training on them steps through, and how much a model withstands.

The attacks know the model's gradients, those of the normalisation included, and may change every channel of every pixel by
epsilon levels of 255.

While an attack looks for its images the model is in eval mode, and each module is put back into its own mode afterwards: the
attack sees the network that will be used, no statistics of a batch norm are drawn from half-made images, dropout draws no
number, and an image's attack does not depend on the others of its batch (Pang et al. 2021, arXiv:2010.00467, find the modes
equal in robustness and eval mode better on clean images).

Does not cover: changes of another measure than the largest one of a pixel, and attacks that see answers only. What
withstands these attacks may fall to a stronger one, so every accuracy here is an upper bound.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionloop.progress import track

# Of the logits, a mean over the images; what an attack raises.
Objective = Callable[[Tensor], Tensor]

# All steps together, in epsilons: enough to cross the ball from any place in it (Madry et al. 2018, arXiv:1706.06083).
_PGD_REACH = 2.5


def fgsm(model: nn.Module, images: Tensor, objective: Objective, *, epsilon: float) -> Tensor:
    """One step of `epsilon` along the sign of the gradient, from the images themselves (Goodfellow et al., arXiv:1412.6572).

    Images uint8 or float [N, H, W, 3] in 0..255 to float32 of the same shape, each value within `epsilon` of its own.
    """
    return ascend(model, Ball(images, epsilon), None, objective, steps=1, step_size=epsilon)


def pgd(
    model: nn.Module, images: Tensor, objective: Objective, generator: torch.Generator, *, epsilon: float, steps: int
) -> Tensor:
    """Projected gradient ascent from a random start (arXiv:1706.06083) with steps of 2.5 * epsilon / `steps`.

    Images uint8 or float [N, H, W, 3] in 0..255 to float32 of the same shape, each value within `epsilon` of its own.
    """
    size = _PGD_REACH * epsilon / steps
    return ascend(model, Ball(images, epsilon), generator, objective, steps=steps, step_size=size)


def accuracy_under_attack(
    model: nn.Module, images: Tensor, labels: Tensor, *, epsilon: float, steps: int, seed: int = 0, batch_size: int = 256
) -> float:
    """The share of images uint8 [N, H, W, 3] that the model, in eval mode, still answers rightly under PGD.

    `labels` are int64 [N]. The attack raises the cross-entropy.
    """
    return pgd_accuracies(model, images, labels, epsilons=(epsilon,), steps=steps, seed=seed, batch_size=batch_size)[0]


def fgsm_accuracies(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilons: Sequence[float],
    batch_size: int = 256,
    description: str = "",
) -> list[float]:
    """As `accuracy_under_attack`, for FGSM at each epsilon, with progress under `description` if there is one."""
    right = [0] * len(epsilons)
    for part, wanted in _parts(images, labels, batch_size, description):
        for place, epsilon in enumerate(epsilons):
            attacked = fgsm(model, part, _raises(wanted), epsilon=epsilon)
            right[place] += int(_is_right(model, attacked, wanted).sum())
    return [count / len(labels) for count in right]


def pgd_accuracies(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilons: Sequence[float],
    steps: int,
    seed: int = 0,
    batch_size: int = 256,
    description: str = "",
) -> list[float]:
    """As `accuracy_under_attack`, at each epsilon, which must rise, with progress under `description` if there is one.

    An image that is wrong as it is, or fell at a smaller epsilon, has fallen at a larger one too, since it may be changed by
    less; it is not attacked again.
    """
    assert list(epsilons) == sorted(epsilons), epsilons
    generator = torch.Generator().manual_seed(seed)
    right = [0] * len(epsilons)
    for part, wanted in _parts(images, labels, batch_size, description):
        left, targets = part, wanted
        stands = _is_right(model, left, targets)
        for place, epsilon in enumerate(epsilons):
            left, targets = left[stands], targets[stands]
            if len(targets) == 0:
                break
            attacked = pgd(model, left, _raises(targets), generator, epsilon=epsilon, steps=steps)
            stands = _is_right(model, attacked, targets)
            right[place] += int(stands.sum())
    return [count / len(labels) for count in right]


def ascend(
    model: nn.Module,
    ball: Ball,
    generator: torch.Generator | None,
    objective: Objective,
    *,
    steps: int,
    step_size: float,
) -> Tensor:
    """`steps` steps of `step_size` levels along the sign of the objective's gradient, kept within the ball.

    They start at a random place, drawn from `generator` on the generator's own device, or without one at the images.
    Gradients that lie in the parameters stay as they are.
    """
    attacked = ball.images.clone() if generator is None else ball.random(generator)
    with eval_mode(model), torch.enable_grad():
        for _ in range(steps):
            attacked.requires_grad_()
            logits, _ = model(attacked)
            (gradient,) = torch.autograd.grad(objective(logits), attacked)
            attacked = ball.step(attacked.detach(), gradient, step_size)
    return attacked


class Ball:
    """All images within epsilon levels of the given ones, and within 0..255."""

    def __init__(self, images: Tensor, epsilon: float) -> None:
        self.images = images.to(torch.float32)
        self._epsilon = epsilon
        self._low, self._high = (self.images - epsilon).clamp_min(0), (self.images + epsilon).clamp_max(255)

    def random(self, generator: torch.Generator) -> Tensor:
        """A place in the ball."""
        noise = torch.rand(self.images.shape, generator=generator, device=generator.device).to(self.images.device)
        return (self.images + (2 * noise - 1) * self._epsilon).clamp(self._low, self._high)

    def step(self, images: Tensor, gradient: Tensor, size: float) -> Tensor:
        """`images` moved by `size` levels along the gradient's sign, and back into the ball."""
        return torch.add(images, gradient.sign(), alpha=size).clamp(self._low, self._high)


@contextlib.contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Every module in eval mode, and afterwards each in the mode that it had, as a frozen norm in eval mode."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _parts(images: Tensor, labels: Tensor, size: int, description: str) -> Iterator[tuple[Tensor, Tensor]]:
    parts = list(zip(torch.split(images, size), torch.split(labels, size), strict=True))
    return track(parts, description, total=len(labels), size=lambda part: len(part[1])) if description else iter(parts)


def _raises(wanted: Tensor) -> Objective:
    return lambda logits: F.cross_entropy(logits, wanted)


def _is_right(model: nn.Module, images: Tensor, wanted: Tensor) -> Tensor:
    with eval_mode(model), torch.no_grad():
        return torch.eq(model(images)[0].argmax(1), wanted)
