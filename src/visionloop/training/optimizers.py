"""The optimizers: torch's own, with the groups, the shares and the decay that a training here wants.

What a parameter gets depends on three things: whether it may decay, how deep it lies (`FamilyParams.layer_decay`), and what
its network asks for it (`Network.learning_rate_scales`). Frozen parameters are left out. Does not cover second-order
methods, nor 8-bit states.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from visionloop.config import FamilyParams, TrainParams
from visionloop.models import Classifier

# What Muon's authors give for hidden layers, and torch's defaults: Nesterov, five Newton-Schulz steps with these three
# coefficients (https://kellerjordan.github.io/posts/muon, arXiv:2502.16982). `train.momentum` stands for their 0.95.
_MUON: Final[Mapping[str, Any]] = {"nesterov": True, "ns_steps": 5, "adjust_lr_fn": "original"}
# No weights between two layers, whatever their shape: positions, tokens, and ConvNeXt's gain of a branch.
_SPARED = ("positions", "pos_embedding", "class_token", "layer_scale")


class Optimizer:
    """One update at a time, from the gradients that lie in the parameters of `model`.

    `train.optimizer` is one of

    - `sgd`: Nesterov's momentum; its decay is decoupled from the gradient (arXiv:1711.05101): momentum does not repeat it.
    - `adam`: torch's Adam (arXiv:1412.6980), whose weight decay is added to the gradient (L2) and so is divided by its size.
    - `adamw`: Adam with decoupled decay (arXiv:1711.05101).
    - `muon`: the momentum of a matrix, made orthogonal by Newton-Schulz steps (torch.optim.Muon; on a CPU in float32), with
      decoupled decay. It takes linear layers and filters between the pixels and the head, a filter as the matrix
      [out, in * height * width]; its steps are longer by sqrt(max(1, rows / columns)). The head, norms, biases, positions,
      tokens and convolutions in groups (each group is a matrix of its own) go to `sgd` with the same momentum and rate; a
      network that wants another rate for them says so by `learning_rate_scales`.

    Decay spares what `is_spared`. `steps_images` is the images that one step has seen: `batch_size` times `accumulate`.

    >>> optimizer = Optimizer(model, params, settings, steps_images=64)
    >>> optimizer.step(optimizer.peak * schedule.factor(0))
    """

    def __init__(self, model: Classifier, params: TrainParams, settings: FamilyParams, *, steps_images: int) -> None:
        self.peak = settings.learning_rate * batch_scale(params, steps_images)
        grouped = groups(model, settings.layer_decay)
        self._matrices: list[_Matrix] = []
        parts: list[torch.optim.Optimizer] = []
        if params.optimizer == "muon":
            hidden, grouped = self._muon_groups(model, grouped, params.weight_decay)
            if hidden:
                parts.append(_Muon(hidden, lr=0.0, momentum=params.momentum, **_MUON))
        self._own_decay = params.weight_decay if params.optimizer in ("sgd", "muon") else 0.0
        torch_groups = [
            {
                "params": group.parameters,
                "weight_decay": params.weight_decay if group.decayed and not self._own_decay else 0.0,
                "share": group.share,
                "decayed": group.decayed,
            }
            for group in grouped
        ]
        # The rate is set at each step. `fused` is one kernel for all tensors of a group, on the CPU too.
        if torch_groups and params.optimizer == "adam":
            parts.append(torch.optim.Adam(torch_groups, lr=0.0, fused=True))
        elif torch_groups and params.optimizer == "adamw":
            parts.append(torch.optim.AdamW(torch_groups, lr=0.0, fused=True))
        elif torch_groups:
            nesterov = params.momentum > 0  # torch refuses it without momentum, where it would change nothing
            parts.append(torch.optim.SGD(torch_groups, lr=0.0, momentum=params.momentum, nesterov=nesterov, fused=True))
        self._parts = parts
        self._parameters = [parameter for group in groups(model, 1.0) for parameter in group.parameters]

    def _muon_groups(
        self, model: Classifier, grouped: Sequence[Group], weight_decay: float
    ) -> tuple[list[dict[str, Any]], list[Group]]:
        """What Muon takes, as its groups, and the groups of what is left."""
        hidden_names = muon_names(model)
        hidden: list[dict[str, Any]] = []
        rest: list[Group] = []
        for group in grouped:
            taken = [_Matrix(p) for name, p in zip(group.names, group.parameters, strict=True) if name in hidden_names]
            left = [(name, p) for name, p in zip(group.names, group.parameters, strict=True) if name not in hidden_names]
            if taken:
                self._matrices += taken
                decay = weight_decay if group.decayed else 0.0
                hidden.append({"params": [m.matrix for m in taken], "weight_decay": decay, "share": group.share})
            if left:
                rest.append(Group(tuple(n for n, _ in left), tuple(p for _, p in left), group.share, group.decayed))
        return hidden, rest

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """One update at the learning rate `rate`, of which each group takes its share; gradients stay as they are."""
        for parameter in self._parameters:
            gradient = parameter.grad
            if gradient is not None and gradient.stride() != parameter.stride():
                parameter.grad = _laid_out_as(gradient, parameter)
        for matrix in self._matrices:
            matrix.bring()
        for part in self._parts:
            for group in part.param_groups:
                group["lr"] = rate * group["share"]
                # torch's SGD would add the decay to the gradient, where momentum repeats it; so it decays here.
                if self._own_decay and group.get("decayed", False):
                    torch._foreach_mul_(group["params"], 1 - group["lr"] * self._own_decay)
            part.step()
        for matrix in self._matrices:
            matrix.return_to_parameter()

    def state_dict(self) -> dict[str, Any]:
        """The momenta and counts, as tensors and numbers that `torch.load(weights_only=True)` reads."""
        return {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict` of an optimizer of the same model and settings."""
        for part, saved in zip(self._parts, state["parts"], strict=True):
            part.load_state_dict(saved)
            for parameter, values in part.state.items():
                for name, value in values.items():
                    if value.shape == parameter.shape:
                        values[name] = _laid_out_as(value, parameter)


@dataclass(frozen=True, slots=True)
class Group:
    """Parameters that are treated alike: `share` of the learning rate, decayed or not. Names are the classifier's."""

    names: tuple[str, ...]
    parameters: tuple[nn.Parameter, ...]
    share: float
    decayed: bool


class _Muon(torch.optim.Muon):
    """torch's, with the Newton-Schulz steps on a CPU in the matrices' own precision instead of bfloat16.

    A processor without bfloat16 rounds every product by hand: there the updates of a ViT of 6 blocks, 192 wide, took longer
    than all else in steps of 128 images. State and settings are torch's, so a checkpoint fits both.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One update from the gradients in the parameters."""
        if self.param_groups[0]["params"][0].device.type != "cpu":
            return super().step(closure)  # type: ignore[no-untyped-call]
        for group in self.param_groups:
            parameters: list[Tensor] = []
            gradients: list[Tensor] = []
            momenta: list[Tensor] = []
            self._init_group(group, parameters, gradients, momenta)
            for parameter, gradient, momentum in zip(parameters, gradients, momenta, strict=True):
                momentum.lerp_(gradient, 1 - group["momentum"])
                update = gradient.lerp(momentum, group["momentum"])  # Nesterov's
                step = group["lr"] * math.sqrt(max(1.0, parameter.shape[0] / parameter.shape[1]))
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(_orthogonal(update, group["ns_steps"], group["ns_coefficients"], group["eps"]), alpha=-step)
        return None


def _orthogonal(matrix: Tensor, steps: int, coefficients: tuple[float, float, float], least_norm: float) -> Tensor:
    """`matrix` [m, n] with its singular values near 1, by the quintic Newton-Schulz iteration (arXiv:2502.16982)."""
    linear, cubic, quintic = coefficients
    tall = matrix.shape[0] > matrix.shape[1]
    found = matrix.T if tall else matrix
    found = found / found.norm().clamp(min=least_norm)
    for _ in range(steps):
        gram = found @ found.T
        found = torch.addmm(found, torch.addmm(gram, gram, gram, beta=cubic, alpha=quintic), found, beta=linear)
    return found.T if tall else found


class _Matrix:
    """A parameter as Muon sees it, in the order [out, in, height, width] whatever its layout in memory.

    A filter in channels_last is no matrix without copying, so it is copied there and back; next to five products of
    matrices that is nothing, and a checkpoint fits a model of the other layout.
    """

    def __init__(self, parameter: nn.Parameter) -> None:
        self._parameter = parameter
        is_matrix = parameter.ndim == 2
        self.matrix = parameter if is_matrix else nn.Parameter(parameter.detach().flatten(1).contiguous().clone())
        self._copied = not is_matrix

    def bring(self) -> None:
        if self._copied:
            self.matrix.copy_(self._parameter.flatten(1))
            gradient = self._parameter.grad
            self.matrix.grad = None if gradient is None else gradient.flatten(1)

    def return_to_parameter(self) -> None:
        if self._copied:
            self._parameter.copy_(self.matrix.view(self._parameter.shape))


def _laid_out_as(value: Tensor, parameter: Tensor) -> Tensor:
    """A copy in the memory layout of the parameter.

    torch's fused kernels on a CPU go through memory in its order and mix up the elements of tensors of different layouts,
    without a word: a filter in channels_last and a gradient or a momentum that is not.
    """
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def batch_scale(params: TrainParams, steps_images: int) -> float:
    """By how much `learning_rate`, meant for steps of `base_batch_size` images, is multiplied for steps of `steps_images`.

    linear: the ratio, which keeps SGD's path (Goyal et al. 2017, arXiv:1706.02677). sqrt: its root, which keeps the size of
    the noise under Adam (Malladi et al. 2022, arXiv:2205.10287).
    """
    ratio = steps_images / params.base_batch_size
    return {"none": 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}[params.batch_scaling]


def is_spared(name: str, parameter: Tensor) -> bool:
    """Whether decay leaves this parameter alone: vectors (norms, biases), positions, tokens and gains."""
    leaf = name.rpartition(".")[2]
    return parameter.ndim <= 1 or leaf in _SPARED or "bias" in leaf


def shares(model: Classifier, layer_decay: float) -> dict[str, float]:
    """The share of the learning rate of each parameter, by the classifier's names.

    The head's layer has 1, each layer before it `layer_decay` times the share of the next (Clark et al. 2020,
    arXiv:2003.10555; for images Bao et al. 2021, arXiv:2106.08254), times what the network asks for.
    """
    network = model.network
    layers = network.layers()
    found = {name: layer_decay ** (len(layers) - 1 - depth) for depth, names in enumerate(layers) for name in names}
    for name, scale in network.learning_rate_scales().items():
        found[name] *= scale
    return {"network." + name: share for name, share in found.items()}


def groups(model: Classifier, layer_decay: float) -> list[Group]:
    """The trainable parameters, those of one share and one decay together, in the order of the model."""
    share_of = shares(model, layer_decay)
    found: dict[tuple[float, bool], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            found.setdefault((share_of[name], not is_spared(name, parameter)), []).append((name, parameter))
    return [
        Group(tuple(name for name, _ in members), tuple(parameter for _, parameter in members), share, decayed)
        for (share, decayed), members in found.items()
    ]


def muon_names(model: Classifier) -> frozenset[str]:
    """The parameters that Muon takes, by name: weights of linear layers and of convolutions in one group, but the head's."""
    return frozenset(_muon_names(model))


def _muon_names(model: Classifier) -> Iterator[str]:
    for prefix, module in model.named_modules():
        if module is model.network.head:
            continue
        for leaf, parameter in module.named_parameters(recurse=False):
            grouped = getattr(module, "groups", 1) != 1
            if parameter.ndim in (2, 4) and not grouped and not is_spared(leaf, parameter):
                yield f"{prefix}.{leaf}"
