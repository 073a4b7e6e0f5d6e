"""Grad-CAM: where in the image the evidence for a class lies (Selvaraju et al. 2017, arXiv:1610.02391).

The element-wise form is used (HiResCAM, Draelos and Carin 2020, arXiv:2011.08891): gradient times activation at each place,
the activation counted from its mean over all places. The classic form averages the gradient over the image first,
which holds where a mean and a linear head follow, and fails in a ViT: on the digits the pixels that it marked at the last
block, taken away, cost the answer no more than the pixels that it did not mark. Which layer is looked at is the
architecture's own knowledge (`Classifier.gradcam_layer`).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from visionloop.models import Classifier


def gradcam(model: Classifier, images: npt.NDArray[np.uint8], classes: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """The heat-map of each image for the class named for it, float32 [N, H, W], 0 to 1, the strongest place 1.

    `images` are uint8 [N, H, W, 3], `classes` int64 [N]. A map without any evidence for the class is all 0.
    """
    if len(images) == 0:
        return np.zeros(images.shape[:3], dtype=np.float32)
    device = next(model.parameters()).device
    layer = model.eval().gradcam_layer()
    seen: list[Tensor] = []
    handle = layer.module.register_forward_hook(lambda module, inputs, output: seen.append(output))
    try:
        with torch.enable_grad():
            logits, _ = model(torch.from_numpy(np.array(images)).to(device))
            score = logits.gather(1, torch.from_numpy(np.array(classes)).to(device)[:, None]).sum()
            (gradient,) = torch.autograd.grad(score, seen[0])
    finally:
        handle.remove()
    maps, gradients = layer.to_map(seen[0].detach()), layer.to_map(gradient)
    heat = F.relu((gradients * (maps - maps.mean((2, 3), keepdim=True))).sum(1, keepdim=True))
    heat = F.interpolate(heat, size=images.shape[1:3], mode="bilinear", align_corners=False)[:, 0]
    strongest = heat.amax((1, 2), keepdim=True)
    return torch.where(strongest > 0, heat / strongest.clamp_min(1e-20), heat).float().cpu().numpy()
