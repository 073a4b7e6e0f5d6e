"""The search finds what comparing every pair finds, and the planted copies, whatever the order; groups do not chain."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps
from sklearn.datasets import load_digits

from visionloop.config import CleanParams
from visionloop.data.duplicates import NearPairs, candidates, connected, hamming, near_pairs, picture_error
from visionloop.data.fingerprints import fingerprint
from visionloop.data.thumbs import THUMB_SIDE, Thumbs
from visionloop.preprocess import PixelArray

LIMIT = 0.38


def picture(seed: int, side: int = 96) -> Image.Image:
    """Coarse blobs with finer ones on them, as in a photo."""
    rng = np.random.default_rng(seed)
    layers = [
        np.asarray(Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)).resize((side, side), 3), float)
        for cells in (4, 8, 16)
    ]
    return Image.fromarray(np.clip(0.45 * layers[0] + 0.35 * layers[1] + 0.2 * layers[2], 0, 255).astype(np.uint8))


def crop(image: Image.Image, share: float) -> Image.Image:
    cut = round(share * image.width)
    return image.crop((cut, cut, image.width - cut, image.height - cut))


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "half": lambda image: image.resize((48, 48), Image.Resampling.BICUBIC),
    "double": lambda image: image.resize((192, 192), Image.Resampling.BICUBIC),
    "mirrored": ImageOps.mirror,
    "cropped 2 %": lambda image: crop(image, 0.02),
    "cropped 5 %": lambda image: crop(image, 0.05),
    "cropped 2 % and mirrored": lambda image: ImageOps.mirror(crop(image, 0.02)),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.15),
    "more contrast": lambda image: ImageEnhance.Contrast(image).enhance(1.2),
    "gray": lambda image: image.convert("L").convert("RGB"),
}


def thumb(image: Image.Image) -> PixelArray:
    return np.frombuffer(fingerprint(image).thumb, dtype=np.uint8).reshape(THUMB_SIDE, THUMB_SIDE, 3)


def search(
    folder: Path, params: CleanParams, pictures: PixelArray, usable: npt.NDArray[np.int64] | None = None, side: int = 96
) -> NearPairs:
    hashes = np.zeros(len(pictures), dtype=np.uint64)
    with Thumbs(len(pictures), folder) as thumbs:
        for index, pixels in enumerate(pictures):
            thumbs.put(index, pixels.tobytes())
        chosen = np.arange(len(pictures)) if usable is None else usable
        return near_pairs(hashes, hashes, thumbs, chosen, sides=np.full(len(pictures), side), params=params)


def pairs_of(found: NearPairs) -> set[tuple[int, int]]:
    return set(zip(found.first.tolist(), found.second.tolist(), strict=True))


@pytest.fixture(scope="module")
def originals() -> PixelArray:
    return np.stack([thumb(picture(seed)) for seed in range(40)])


@pytest.mark.parametrize("kind", COPIES)
def test_a_planted_copy_is_found_and_nothing_else(
    kind: str, originals: PixelArray, tmp_path: Path, clean_params: CleanParams
) -> None:
    copies = np.stack([thumb(COPIES[kind](picture(seed))) for seed in range(20)])
    found = search(tmp_path, clean_params, np.concatenate([originals, copies]))
    assert pairs_of(found) == {(seed, len(originals) + seed) for seed in range(20)}
    assert found.mirrored.tolist() == ["mirrored" in kind] * 20
    assert (found.error <= clean_params.near_duplicate_error).all()


@settings(max_examples=15)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(0, 60), noise=st.floats(3, 40))
def test_candidates_are_those_of_every_pair(
    seed: int, count: int, noise: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A leaf of the trees holds 128 images, so for fewer the search must be exact; without noise all would be nearest."""
    rng = np.random.default_rng(seed)
    base = [np.asarray(picture(number, THUMB_SIDE), dtype=float) for number in range(5)]
    drawn = [base[rng.integers(5)][:, :: rng.choice([-1, 1])] + rng.normal(0, noise, (32, 32, 3)) for _ in range(count)]
    pixels = np.clip(np.reshape(drawn, (count, 32, 32, 3)), 0, 255).astype(np.uint8)
    with Thumbs(count, tmp_path_factory.mktemp("thumbs")) as thumbs:
        for index, one in enumerate(pixels):
            thumbs.put(index, one.tobytes())
        first, second, flipped = candidates(thumbs, np.arange(count))
    found = set(zip(first.tolist(), second.tolist(), flipped.tolist(), strict=True))
    terms = low_terms(pixels)
    for i in range(count):
        partners = sorted(((alike(terms[i], terms[j]), j) for j in range(count) if j != i), reverse=True)
        for (cosine, flip), j in partners[:2]:
            if cosine > 0.961:
                assert (min(i, j), max(i, j), flip) in found
    for i, j, flip in found:
        assert alike(terms[i], terms[j])[0] > 0.9 and i < j and flip in (True, False)


def low_terms(pixels: PixelArray) -> npt.NDArray[np.float64]:
    """Terms u + v <= 8 of the cosine transform without its mean, in plain loops' order; [N, 9, 9] with the others 0."""
    gray = pixels @ np.array([0.299, 0.587, 0.114])
    place, term = np.arange(32), np.arange(9)[:, None]
    rows = np.cos(np.pi * term * (place + 0.5) / 32) * np.where(term == 0, 1, 2**0.5)
    terms = rows @ gray @ rows.T
    u, v = np.mgrid[:9, :9]
    return np.asarray(terms * ((u + v > 0) & (u + v <= 8)))


def alike(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> tuple[float, bool]:
    turned = b * np.where(np.arange(9) % 2, -1, 1)
    size = np.linalg.norm(a) * np.linalg.norm(b)
    plain, mirrored = float((a * b).sum() / size), float((a * turned).sum() / size)
    return max(plain, mirrored), mirrored > plain


@settings(max_examples=8)
@given(order=st.permutations(range(60)))
def test_groups_do_not_depend_on_the_order(
    order: list[int], originals: PixelArray, clean_params: CleanParams, tmp_path_factory: pytest.TempPathFactory
) -> None:
    copies = [thumb(COPIES[kind](picture(seed))) for kind in ("mirrored", "cropped 2 %") for seed in range(10)]
    pictures = np.concatenate([originals, copies])

    def groups(arrangement: list[int]) -> set[frozenset[int]]:
        found = search(tmp_path_factory.mktemp("thumbs"), clean_params, pictures[arrangement])
        named = connected(60, found.first, found.second)
        return {frozenset(arrangement[i] for i in np.flatnonzero(named == name)) for name in set(named.tolist())}

    assert groups(order) == groups(list(range(60)))
    assert frozenset({0, 40, 50}) in groups(order)


def test_only_usable_images_are_searched(originals: PixelArray, tmp_path: Path, clean_params: CleanParams) -> None:
    pictures = np.concatenate([originals[:3], originals[:3], originals[:3]])
    found = search(tmp_path, clean_params, pictures, np.array([0, 4, 5, 6, 7]))
    assert pairs_of(found) == {(0, 6), (4, 7)}


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_images_make_no_pair(count: int, originals: PixelArray, tmp_path: Path, clean_params: CleanParams) -> None:
    assert pairs_of(search(tmp_path, clean_params, originals[:count])) == set()


def test_a_thousand_copies_are_one_group(originals: PixelArray, tmp_path: Path, clean_params: CleanParams) -> None:
    """As far as the trees part them, they are still tied together, by far fewer pairs than there are."""
    rng = np.random.default_rng(0)
    noisy = np.clip(originals[0] + rng.normal(0, 4, (1000, 32, 32, 3)), 0, 255).astype(np.uint8)
    found = search(tmp_path, clean_params, np.concatenate([originals[1:], noisy]))
    groups = connected(1039, found.first, found.second)
    assert groups.tolist() == [*range(39), *[39] * 1000]
    assert len(found.first) < 30 * 1000


def test_a_chain_of_small_steps_does_not_join_its_ends(tmp_path: Path, clean_params: CleanParams) -> None:
    """A camera that pans: each frame is like the next, but the last shows nothing of the first."""
    wide = np.asarray(picture(3, 1024).crop((0, 0, 1024, 256)))
    frames = np.stack([thumb(Image.fromarray(wide[:, x : x + 256])) for x in range(0, 768, 6)])
    found = search(tmp_path, clean_params, frames)
    groups = connected(len(frames), found.first, found.second)
    assert len(set(groups.tolist())) > 3
    for index, name in enumerate(groups.tolist()):
        loose = 1.5 * clean_params.near_duplicate_error
        assert index == name or picture_error(frames[[name]], frames[[index]], loose)[0] <= loose + 1e-6


def test_products_alike_in_the_large_are_told_apart() -> None:
    """Two prints on one shirt on one ground: the whole agrees, what is fine does not."""
    shirt = np.full((2, 32, 32, 3), 200, dtype=np.uint8)
    shirt[:, 4:28, 6:26] = 40
    shirt[0, 8:14, 9:22] = 200
    shirt[1, 14:22, 12:16] = 200
    left, right = shirt[:1].astype(float), shirt[1:].astype(float)
    assert np.corrcoef(left.ravel(), right.ravel())[0, 1] > 0.7
    assert picture_error(shirt[:1], shirt[1:], LIMIT)[0] > LIMIT


def test_picture_error_ignores_brightness_and_contrast_but_not_colour() -> None:
    one = np.asarray(picture(1, THUMB_SIDE))[None] // 2 + 40
    assert picture_error(one, one)[0] == pytest.approx(0, abs=1e-3)
    assert picture_error(one, one + 40)[0] == pytest.approx(0, abs=1e-3)
    assert picture_error(one, one // 2)[0] < 0.1  # rounding
    assert picture_error(one, 255 - one, LIMIT)[0] > 1.9
    assert picture_error(one, one[..., [1, 2, 0]], LIMIT)[0] > LIMIT
    gray = np.repeat((one @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)[..., None], 3, axis=3)
    assert picture_error(one, gray)[0] < 0.1


def test_hamming() -> None:
    assert hamming(np.array([0, 2**64 - 1], np.uint64), np.array([5, 0], np.uint64)).tolist() == [2, 64]


def test_connected_groups_are_named_by_their_lowest() -> None:
    assert connected(6, np.array([1, 3, 4]), np.array([3, 5, 4])).tolist() == [0, 1, 2, 1, 4, 1]


def test_thousands_of_images_are_not_compared_each_with_each(tmp_path: Path) -> None:
    """64 million pairs of 8,000 different pictures: all but none are left out."""
    rng = np.random.default_rng(0)
    with Thumbs(8000, tmp_path) as thumbs:
        for index in range(8000):
            coarse = np.kron(rng.integers(0, 256, (8, 8, 3)), np.ones((4, 4, 1)))
            thumbs.put(index, coarse.astype(np.uint8).tobytes())
        start = time.perf_counter()
        first, _, _ = candidates(thumbs, np.arange(8000))
    assert len(first) == 0
    assert time.perf_counter() - start < 20


def test_digits_of_different_hands_are_not_copies_of_each_other(tmp_path: Path, clean_params: CleanParams) -> None:
    """8 x 8 pixels leave so little to differ in that the limit of photos would call hundreds of them the same."""
    pixels = np.rint(load_digits().images * 255 / 16).astype(np.uint8)
    pictures = np.stack([thumb(Image.fromarray(one).convert("RGB")) for one in pixels])
    params = clean_params.model_copy(update={"near_duplicate_error": LIMIT})
    assert len(search(tmp_path, params, pictures, side=8).first) == 1
    assert len(search(tmp_path, params, pictures).first) > 150
