"""Training on images that are changed by a few levels so that the model errs; the attacks are those of `visionloop.attacks`.

A change is of at most `adversarial_epsilon` levels of 255 in each channel of each pixel. The model is in eval mode while an
attack looks for its images, but in `free`, whose gradients are the training step's own.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from visionloop.attacks import Ball, Objective, ascend, pgd
from visionloop.config import TrainParams

# The step that Wong et al. 2020 (arXiv:2001.03994) take after a random start, in epsilons.
_FGSM_STEP = 1.25


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
            return ascend(model, Ball(images, self._epsilon), generator, objective, steps=1, step_size=size)
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
        ball = Ball(images, self._epsilon)
        attacked = ball.random(generator).requires_grad_()
        for replay in range(self._steps):
            yield attacked
            if replay + 1 < self._steps:
                assert attacked.grad is not None, "a version was not used in a backward pass"
                attacked = ball.step(attacked.detach(), attacked.grad, self._epsilon).requires_grad_()
