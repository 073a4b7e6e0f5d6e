"""Grad-CAM: where in the image the evidence for a class lies (Selvaraju et al. 2017, arXiv:1610.02391).

The integrated form is used (Sattarzadeh et al. 2021, arXiv:2102.07805): the layer's output goes in steps from its mean over
all places, an image without any "where", to what it is; the gradients on the way are averaged and multiplied with the
difference, place by place. What the map sums up is then the score that the places' content adds. The classic form takes one
gradient and averages it over the image, which holds where a mean and a linear head follow, and fails in a ViT: on the digits
the pixels that it marked at the last block, taken away, cost the answer no more than the pixels that it did not mark.

Which layer is looked at is the architecture's own knowledge (`Classifier.gradcam_layer`).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionloop.models import Classifier

STEPS = 8  # on the way; 64 change the digits' maps by 0.006 (CNN) and 0.0003 (ViT) of 1 on average


def gradcam(model: Classifier, images: npt.NDArray[np.uint8], classes: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """The heat-map of each image for the class named for it, float32 [N, H, W], 0 to 1, the strongest place 1.

    `images` are uint8 [N, H, W, 3], `classes` int64 [N]. A map without any evidence for the class is all 0.
    """
    if len(images) == 0:
        return np.zeros(images.shape[:3], dtype=np.float32)
    model.eval()
    device = next(model.parameters()).device
    pixels = torch.from_numpy(np.array(images)).to(device)
    chosen = torch.from_numpy(np.array(classes)).to(device)[:, None]
    layer = model.gradcam_layer()
    with torch.no_grad():
        output = _Output(layer.module)
        with output:
            model(pixels)
    assert output.value is not None
    present = output.value.detach().clone()
    absent = present.mean(layer.places, keepdim=True)
    total = torch.zeros_like(present)
    for step in range(STEPS):
        point = (absent + (step + 0.5) / STEPS * (present - absent)).requires_grad_()
        # A copy, because some networks overwrite the layer's output in place.
        with torch.enable_grad(), _Output(layer.module, point.clone()):
            score = model(pixels)[0].gather(1, chosen).sum()
        total += torch.autograd.grad(score, point)[0]
    heat = F.relu(layer.to_map(total / STEPS * (present - absent)).sum(1, keepdim=True))
    heat = F.interpolate(heat, size=images.shape[1:3], mode="bilinear", align_corners=False)[:, 0]
    strongest = heat.amax((1, 2), keepdim=True)
    return torch.where(strongest > 0, heat / strongest.clamp_min(1e-20), heat).float().cpu().numpy()


class _Output:
    """While it is entered, keeps what a module gives, or puts `instead` in its place."""

    def __init__(self, module: nn.Module, instead: Tensor | None = None) -> None:
        self._module, self._instead = module, instead
        self.value: Tensor | None = None

    def __enter__(self) -> None:
        self._handle = self._module.register_forward_hook(self._hook)

    def __exit__(self, *error: object) -> None:
        self._handle.remove()

    def _hook(self, module: nn.Module, inputs: object, output: Tensor) -> Tensor | None:
        self.value = output.clone()
        return self._instead
