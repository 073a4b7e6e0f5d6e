"""Maps by the name of their method, over images of any number."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from visionloop.errors import ArtifactError
from visionloop.explanation.attention import rollout_maps
from visionloop.explanation.gradient import gradient_maps
from visionloop.models import Classifier

Method = Literal["gradcam", "layercam", "integrated_gradcam", "rollout"]
METHODS: tuple[Method, ...] = get_args(Method)
NAMES: dict[Method, str] = {
    "gradcam": "Grad-CAM",
    "layercam": "LayerCAM",
    "integrated_gradcam": "integrated Grad-CAM",
    "rollout": "attention roll-out",
}
_BATCH_PIXELS = 1 << 20  # bounds memory: 64 images of 128 x 128, 20 of 224 x 224, each with its gradients


def methods_of(model: Classifier) -> tuple[Method, ...]:
    """The methods that the network has what it takes for."""
    return tuple(name for name in METHODS if name != "rollout" or model.network.attention() is not None)


def heat_maps(
    model: Classifier, images: npt.NDArray[np.uint8], classes: npt.NDArray[np.int64], method: Method
) -> npt.NDArray[np.float32]:
    """The heat-map of each image for the class named for it, float32 [N, H, W], 0 to 1, the strongest place 1.

    `images` are uint8 [N, H, W, 3], `classes` int64 [N]. A map without any evidence for the class is all 0. The model is
    left in eval mode.

    Raises:
        ArtifactError: a class that the model does not know; or the network has no layer or no attention for the method.
    """
    if len(classes) != len(images) or not ((classes >= 0) & (classes < model.num_classes)).all():
        raise ArtifactError(
            f"Maps are asked for {len(images)} images and {len(classes)} classes up to {classes.max(initial=0)}; each image "
            f"needs one of the {model.num_classes} classes that the model knows, from 0."
        )
    model.eval()
    size = max(1, min(1024, _BATCH_PIXELS // max(1, images.shape[1] * images.shape[2])))
    found = [np.zeros((0, *images.shape[1:3]), np.float32)]
    for start in range(0, len(images), size):
        part = slice(start, start + size)
        try:
            if method == "rollout":
                small = rollout_maps(model, images[part], classes[part])
            else:
                small = gradient_maps(model, images[part], classes[part], method)
        except NotImplementedError as error:
            raise ArtifactError(
                f"{model.architecture} names no layer that a map could be made from; give its network a `gradcam_layer`, or "
                "set evaluate.explained_images to 0."
            ) from error
        found.append(scaled(small, images.shape[1], images.shape[2]))
    return np.concatenate(found)


def scaled(maps: npt.NDArray[np.float32], height: int, width: int) -> npt.NDArray[np.float32]:
    """Maps [N, h, w], at least 0, at the size of the images and with 1 as their strongest place."""
    large = F.interpolate(torch.from_numpy(maps)[:, None], size=(height, width), mode="bilinear", align_corners=False)[:, 0]
    strongest = large.amax((1, 2), keepdim=True)
    return torch.where(strongest > 0, large / strongest.clamp_min(1e-20), large).numpy()
