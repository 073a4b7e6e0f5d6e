"""The layers of a network in the order in which an image passes them, found from how its modules are nested.

For learning rates that differ by depth. Does not follow the forward pass: a network that defines its parts in another order
than it uses them says so itself, by a `layers` of its own.
"""

from __future__ import annotations

from torch import nn


def layers_in_order(network: nn.Module, head: nn.Module, containers: tuple[type[nn.Module], ...] = ()) -> list[list[str]]:
    """Every parameter of `network` by name, grouped into layers from the input to `head`.

    A layer is a block (a residual or attention block, as its author cut it) or a lone convolution or linear layer. `network`
    itself, plain sequences, lists, dictionaries and `containers` are taken apart; a child called `stem` is one layer. A norm
    goes with the convolution before it, else with what follows it, as the last norm of a transformer with the head.
    Positions and tokens, which stand beside the blocks, go with the first layer, as in arXiv:2106.08254.
    """
    loose: list[str] = []
    found: list[list[str]] = []
    waiting: list[str] = []  # norms that go with what follows

    def walk(module: nn.Module, prefix: str) -> None:
        loose.extend(prefix + name for name, _ in module.named_parameters(recurse=False))
        after_leaf = False
        for name, child in module.named_children():
            names = [f"{prefix}{name}.{leaf}" for leaf, _ in child.named_parameters()]
            if child is head or not names:
                continue
            if name != "stem" and (type(child) is nn.Sequential or isinstance(child, _PLAIN + containers)):
                walk(child, f"{prefix}{name}.")
                after_leaf = False
            elif _is_norm(child) and after_leaf:
                found[-1].extend(names)
            elif _is_norm(child):
                waiting.extend(names)
            else:
                found.append([*waiting, *names])
                waiting.clear()
                after_leaf = next(child.children(), None) is None

    walk(network, "")
    at = next(name for name, module in network.named_modules() if module is head)
    found.append([*waiting, *(f"{at}.{leaf}" for leaf, _ in head.named_parameters())])
    found[0][:0] = loose
    return found


_PLAIN = (nn.ModuleList, nn.ModuleDict)


def _is_norm(module: nn.Module) -> bool:
    """A module without parts whose parameters are all vectors."""
    return next(module.children(), None) is None and all(parameter.ndim <= 1 for parameter in module.parameters())
