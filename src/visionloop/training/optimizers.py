"""Optimizers with decoupled weight decay that spares norms, biases and positions, and the learning rate of each step."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import nn

MOMENTUM = 0.9


class Optimizer:
    """AdamW, or SGD with Nesterov momentum 0.9; both with decay decoupled from the gradient (arXiv:1711.05101).

    >>> optimizer = Optimizer(model, "adamw", weight_decay=0.05)
    >>> optimizer.step(learning_rate=0.001)
    """

    def __init__(self, model: nn.Module, kind: Literal["adamw", "sgd"], weight_decay: float) -> None:
        decayed, spared = split_parameters(model)
        groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": spared, "weight_decay": 0.0}]
        groups = [group for group in groups if group["params"]]
        # The learning rate is set at each step. `fused` is one kernel for all tensors, on the CPU too.
        if kind == "adamw":
            self.torch_optimizer: torch.optim.Optimizer = torch.optim.AdamW(groups, lr=0.0, fused=True)
            self._own_decay = 0.0
        else:
            # torch's SGD adds its decay to the gradient, where momentum repeats it; so it gets none and `step` decays.
            for group in groups:
                group["weight_decay"] = 0.0
            self.torch_optimizer = torch.optim.SGD(groups, lr=0.0, momentum=MOMENTUM, nesterov=True, fused=True)
            self._own_decay = weight_decay
        self._decayed = decayed

    def step(self, learning_rate: float) -> None:
        """One step on the gradients that lie in the parameters."""
        for group in self.torch_optimizer.param_groups:
            group["lr"] = learning_rate
        if self._own_decay and self._decayed:
            with torch.no_grad():
                torch._foreach_mul_(tuple(self._decayed), 1 - learning_rate * self._own_decay)
        self.torch_optimizer.step()


def split_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The trainable parameters as (decayed, spared); spared are vectors (norms, biases) and learnt positions or tokens."""
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            leaf = name.rpartition(".")[2]
            is_spared = parameter.ndim <= 1 or leaf in ("positions", "pos_embedding", "class_token") or "bias" in leaf
            (spared if is_spared else decayed).append(parameter)
    return decayed, spared


def learning_rate_factor(step: int, steps: int, warmup_steps: int) -> float:
    """The share of the peak learning rate at `step` of 0 to `steps` - 1: a linear warm-up, then half a cosine towards 0.

    The warm-up takes at most half of the steps, so that a short trial run still learns.
    """
    warmup_steps = min(warmup_steps, steps // 2)
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / (steps - warmup_steps)))
