"""A moving average of the weights, which is calmer than the weights of any one step.

Does not cover: averages that start late or are taken once an epoch (stochastic weight averaging).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class Ema:
    """The exponential moving average of a model's parameters over its steps (Polyak and Juditsky 1992, in its usual form).

    After t updates it is the sum of (1 - decay) * decay ** (t - i) * weights_i over i = 1..t, divided by 1 - decay ** t,
    which is what these factors sum to (the correction of Adam, arXiv:1412.6980). So the initial weights have no part in it,
    where in the plain form they still weigh decay ** t: 90 % after 100 steps at 0.999.

    >>> ema = Ema(model, 0.999)
    >>> ema.update()  # after each step of the optimizer
    >>> model.load_state_dict(ema.weights())
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._model = model
        self._decay = decay
        self._updates = 0
        self._average = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights that the model has now."""
        self._updates += 1
        share = (1 - self._decay) / (1 - self._decay**self._updates)
        parameters = dict(self._model.named_parameters())
        torch._foreach_lerp_(list(self._average.values()), [parameters[name].detach() for name in self._average], share)

    def weights(self) -> dict[str, Tensor]:
        """A state dict of the model, copied: the averages of its parameters, and its buffers as they are now.

        The statistics of a batch norm are a moving average already, of the last tens of steps.
        """
        state = {name: value.detach().clone() for name, value in self._model.state_dict().items()}
        return state | {name: value.clone() for name, value in self._average.items()}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: the count of updates and the averages."""
        return {"updates": self._updates, "average": dict(self._average)}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict` of the same model."""
        self._updates = int(state["updates"])
        for name, value in self._average.items():
            value.copy_(state["average"][name])
