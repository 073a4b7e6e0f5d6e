"""Maps from one layer's output and the gradient of a class's score with respect to it.

Which layer that is, is the architecture's own knowledge (`Classifier.gradcam_layer`).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionloop.models import Classifier, GradcamLayer

GradientMethod = Literal["gradcam", "layercam", "integrated_gradcam"]

STEPS = 8  # on the way; 64 change the digits' maps by 0.006 (CNN) and 0.0003 (ViT) of 1 on average


def gradient_maps(
    model: Classifier, images: npt.NDArray[np.uint8], classes: npt.NDArray[np.int64], method: GradientMethod
) -> npt.NDArray[np.float32]:
    """What each place speaks for the class named for each image, float32 [N, h, w], at least 0, of the layer's own size.

    `images` are uint8 [N, H, W, 3], `classes` int64 [N].

    - gradcam: each channel counts by its gradient's mean over all places (Selvaraju et al. 2017, arXiv:1610.02391).
    - layercam: each place of each channel counts by its own gradient where that is positive (Jiang et al. 2021,
      doi:10.1109/TIP.2021.3089943).
    - integrated_gradcam: the output goes in steps from its mean over all places, an image without any "where", to what it
      is; the gradients on the way are averaged and multiplied with the difference, place by place (after Sattarzadeh et al.
      2021, arXiv:2102.07805). The map before negative places are cut sums up to the score that the places' content adds.
    """
    device = next(model.parameters()).device
    pixels = torch.from_numpy(np.array(images)).to(device)
    chosen = torch.from_numpy(np.array(classes)).to(device)[:, None]
    layer = model.gradcam_layer()
    with torch.no_grad(), _Output(layer.module) as output:
        model(pixels)
    assert output.value is not None
    present = output.value.detach().clone()

    def gradient(point: Tensor) -> Tensor:
        point = point.detach().requires_grad_()
        # A copy, because some networks overwrite the layer's output in place.
        with torch.enable_grad(), _Output(layer.module, point.clone()):
            score = model(pixels)[0].gather(1, chosen).sum()
        return torch.autograd.grad(score, point)[0]

    if method == "gradcam":
        evidence = _mean_over_places(layer, gradient(present)) * present
    elif method == "layercam":
        evidence = F.relu(gradient(present)) * present
    else:
        difference = present - _mean_over_places(layer, present)
        total = torch.zeros_like(present)
        for step in range(STEPS):
            total += gradient(present + ((step + 0.5) / STEPS - 1) * difference)
        evidence = total / STEPS * difference
    return F.relu(layer.to_map(evidence).sum(1)).float().cpu().numpy()


def _mean_over_places(layer: GradcamLayer, output: Tensor) -> Tensor:
    """The mean over all places, at each of them; what is no place, as a class token, stays as it is."""
    first = layer.places[0]
    leading = output.narrow(first, 0, layer.leading)
    places = output.narrow(first, layer.leading, output.shape[first] - layer.leading)
    return torch.cat([leading, places.mean(layer.places, keepdim=True).expand_as(places)], first)


class _Output:
    """While it is entered, keeps what a module gives, or puts `instead` in its place."""

    def __init__(self, module: nn.Module, instead: Tensor | None = None) -> None:
        self._module, self._instead = module, instead
        self.value: Tensor | None = None

    def __enter__(self) -> _Output:
        self._handle = self._module.register_forward_hook(self._hook)
        return self

    def __exit__(self, *error: object) -> None:
        self._handle.remove()

    def _hook(self, module: nn.Module, inputs: object, output: Tensor) -> Tensor | None:
        self.value = output.clone()
        return self._instead
