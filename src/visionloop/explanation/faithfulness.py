"""Whether maps are right: on images whose evidence was placed, and by taking away what a map marks.

Three pointing tests, after the pointing game of Zhang et al. 2016, arXiv:1608.00507, on images made of held-out ones: an
image shrunk to a quarter stands in one of the corners, and a map hits when its strongest place lies there.

- corner: the rest is blank.
- pair: a shrunk image of another class stands in another corner.
- patch: it stands on a whole image of another class.

Only images count where the model shows that the evidence is there: it answers the class from the quarter alone, and without
the quarter the class has at most half the probability.

Insertion and deletion are those of Petsiuk et al. 2018, arXiv:1806.07421: pixels are taken away (blank) in the order of the
map, and the class's probability should fall at once; or they come back into a blurred image, and it should rise at once.

Does not cover: whether the evidence is what a person would look at.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter

from visionloop.explanation.integrated import blank_colour
from visionloop.explanation.methods import scaled
from visionloop.models import Classifier

Images = npt.NDArray[np.uint8]
Classes = npt.NDArray[np.int64]
Maps = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]
Test = Literal["corner", "pair", "patch"]
TESTS: tuple[Test, ...] = get_args(Test)

LEAST_IMAGES = 8  # a share of fewer says nothing
STEPS = 12  # of insertion and deletion
_LEAST_PROBABILITY = 0.2  # of the placed class, where it has a rival: well above what is left for a class without evidence
_BATCH_PIXELS = 1 << 22
_TRIES = 20  # placings tried for each one that is wanted: a quarter of a digit's pixels is often too few


@dataclass(frozen=True)
class Placed:
    """Images in each of which the evidence for a class lies within a box."""

    images: Images  # [N, H, W, 3]
    classes: Classes  # [N], what is asked for
    boxes: npt.NDArray[np.bool_]  # [N, H, W], where its evidence lies

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def chance(self) -> float:
        """The share of hits of maps that point anywhere."""
        return float(self.boxes.mean()) if len(self) else 0.0


def count_for(height: int, width: int) -> int:
    """How many images a test takes: 48, fewer where they are large, at least 16."""
    return max(16, min(48, (1 << 19) // (height * width)))


def placed(model: Classifier, images: Images, labels: Classes, count: int, seed: int) -> dict[Test, Placed]:
    """At most `count` images for each test, made of `images` uint8 [N, H, W, 3] of the classes `labels` [N].

    The same arguments give the same images.
    """
    rng = np.random.default_rng(seed)
    height, width = images.shape[1:3]
    half = _shrunk(images)
    corners = [(top, left) for top in (0, height - half.shape[1]) for left in (0, width - half.shape[2])]
    masks = np.zeros((len(corners), height, width), np.bool_)
    for mask, (top, left) in zip(masks, corners, strict=True):
        mask[top : top + half.shape[1], left : left + half.shape[2]] = True
    blanks = np.broadcast_to(blank_colour(images), images.shape)

    def put(ground: Images, parts: Classes, where: Classes) -> Images:
        """Shrunk images `parts` into the corners `where` of `ground`."""
        out = ground.copy()
        out[masks[where]] = half[parts].reshape(-1, 3)
        return out

    def sure(made: Images, classes: Classes) -> Floats:
        """The probability of the class asked for, [N]."""
        return _probability(model, made, classes)

    # Every image in every corner, in any order, as far as they are wanted; those that the model answers from the quarter.
    parts, where = np.divmod(rng.permutation(4 * len(images))[: _TRIES * count], 4)
    alone = put(blanks[parts], parts, where)
    answers = _probabilities(model, alone)
    wanted = labels[parts]
    without = _probabilities(model, blanks[parts])
    chosen = np.arange(len(parts))
    known = (answers.argmax(1) == wanted) & (without[chosen, wanted] <= answers[chosen, wanted] / 2)
    found = {"corner": Placed(alone[known][:count], wanted[known][:count], masks[where[known]][:count])}

    good = np.flatnonzero(known)
    tests: tuple[tuple[Test, bool], ...] = (("pair", True), ("patch", False))
    for name, shrunk in tests:
        # Good ones again and again, each time with another rival, until enough stand their ground.
        taken = rng.permutation(np.tile(good, -(-_TRIES * count // 2 // max(1, len(good))))) if len(good) else good
        taken = taken[: _TRIES * count // 2]
        part, corner = parts[taken], where[taken]
        rival = rng.integers(0, max(1, len(images)), len(taken))
        other = labels[rival] != labels[part]
        part, corner, rival = part[other], corner[other], rival[other]
        ground = images[rival]
        if shrunk:
            ground = put(blanks[part], rival, (corner + rng.integers(1, 4, len(corner))) % 4)
        both, classes = put(ground, part, corner), labels[part]
        rest = np.where(masks[corner][..., None], blanks[rival], ground)
        whole, of_rest, of_quarter = sure(both, classes), sure(rest, classes), sure(put(blanks[part], part, corner), classes)
        stands = np.flatnonzero((whole >= _LEAST_PROBABILITY) & (of_rest <= whole / 2) & (of_quarter >= whole))[:count]
        found[name] = Placed(both[stands], classes[stands], masks[corner[stands]])
    return {name: found[name] for name in TESTS}


def hits(maps: Maps, boxes: npt.NDArray[np.bool_]) -> Floats:
    """For each map [N, H, W] whether its strongest place lies in the box, [N]; of equally strong places the share that does.

    So a map without any evidence hits as often as chance does.
    """
    strongest = maps == maps.max((1, 2), keepdims=True)
    return np.asarray((strongest & boxes).sum((1, 2)) / strongest.sum((1, 2)))


@dataclass(frozen=True)
class Curves:
    """The class's mean probability while pixels come and go, at 0, 1 / STEPS, ... 1 of them."""

    insertion: Floats  # [N, STEPS + 1]
    deletion: Floats

    @property
    def insertion_auc(self) -> float:
        """Area under the mean curve of insertion, 0 to 1: higher is better."""
        return _area(self.insertion)

    @property
    def deletion_auc(self) -> float:
        """Area under the mean curve of deletion, 0 to 1: lower is better."""
        return _area(self.deletion)


def insertion_deletion(model: Classifier, images: Images, classes: Classes, maps: Maps) -> Curves:
    """What becomes of the classes' probabilities when pixels come and go in the order of the maps [N, H, W]."""
    count, height, width = maps.shape
    pixels = height * width
    # Where each pixel stands in the order; among equals the upper left comes first.
    order = np.argsort(-maps.reshape(count, pixels), axis=1, kind="stable")
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.broadcast_to(np.arange(pixels), order.shape), axis=1)
    blanks, blurred = np.broadcast_to(blank_colour(images), images.shape), _blurred(images)
    insertion, deletion = np.zeros((2, count, STEPS + 1))
    for step in range(STEPS + 1):
        first = (rank < pixels * step / STEPS).reshape(count, height, width, 1)
        insertion[:, step] = _probability(model, np.where(first, images, blurred), classes)
        deletion[:, step] = _probability(model, np.where(first, blanks, images), classes)
    return Curves(insertion, deletion)


def random_maps(grid: tuple[int, int], images: Images, seed: int) -> Maps:
    """Maps [N, H, W] that know nothing, as coarse as those of a method: noise on its grid (h, w), at the images' size."""
    noise = np.random.default_rng(seed).random((len(images), *grid)).astype(np.float32)
    return scaled(noise, images.shape[1], images.shape[2])


def _area(curves: Floats) -> float:
    return float(np.trapezoid(curves.mean(0)) / (curves.shape[1] - 1)) if len(curves) else 0.0


def _probabilities(model: Classifier, images: Images) -> Floats:
    """[N, K], without calibration: a temperature changes no order."""
    device = next(model.parameters()).device
    size = max(1, _BATCH_PIXELS // (images.shape[1] * images.shape[2]))
    model.eval()
    with torch.inference_mode():
        parts = [
            model(torch.from_numpy(np.array(images[start : start + size])).to(device))[0].double().softmax(1).cpu()
            for start in range(0, len(images), size)
        ]
    return torch.cat(parts).numpy() if parts else np.zeros((0, model.num_classes))


def _probability(model: Classifier, images: Images, classes: Classes) -> Floats:
    return np.asarray(_probabilities(model, images)[np.arange(len(classes)), classes])


def _shrunk(images: Images) -> Images:
    """Images [N, H, W, 3] at half their height and width, each new pixel the mean of those that it stands for."""
    size = (max(1, images.shape[1] // 2), max(1, images.shape[2] // 2))
    planes = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float()
    small = F.interpolate(planes, size, mode="bilinear", antialias=True, align_corners=False)
    return np.asarray(small.round().clamp(0, 255).permute(0, 2, 3, 1).to(torch.uint8).numpy())


def _blurred(images: Images) -> Images:
    """Images without detail: a Gaussian of an eighth of the shorter side."""
    sigma = min(images.shape[1:3]) / 8
    return np.asarray(gaussian_filter(images.astype(np.float32), (0, sigma, sigma, 0)).round().clip(0, 255).astype(np.uint8))
