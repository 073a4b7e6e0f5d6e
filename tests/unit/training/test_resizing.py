"""A training that starts on smaller images: which sizes, what the images become, who sees them, who cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.unit.training import worlds
from visionloop.errors import ConfigError
from visionloop.models import Classifier, Family, build, small_vit
from visionloop.training import TrainResult, loop, train
from visionloop.training.batches import train_batches
from visionloop.training.distillation import Teacher
from visionloop.training.execution import Forward
from visionloop.training.resizing import check_sizes, resized, sizes


@pytest.mark.parametrize(
    ("full", "multiple", "scale", "share", "sides"),
    [
        (32, 4, 0.75, 0.6, [24] * 5 + [28] * 5 + [32] * 6),
        (32, 4, 0.5, 0.5, [16, 16, 20, 24, 28] + [32] * 5),  # 16, 19.2, 22.4, 25.6, 28.8
        (24, 6, 0.5, 0.5, [12, 18, 24, 24]),  # of small_vit with patches of 3
        (30, 4, 0.9, 0.5, [24, 28, 30, 30]),  # 27 and 28.5; the full side need not be a multiple
        (64, 16, 0.5, 0.5, [32, 48, 64, 64]),
        (8, 16, 0.5, 0.5, [8, 8]),  # there is no smaller multiple
        (32, 4, 1.0, 0.5, [32] * 3),
    ],
)
def test_sides_grow_in_a_line_and_are_whole_from_the_share_on(
    full: int, multiple: int, scale: float, share: float, sides: list[int]
) -> None:
    params = worlds.params(epochs=len(sides), initial_scale=scale, full_scale_from=share)
    assert [height for height, _ in sizes((full, full), multiple, params)] == sides
    wide = sizes((full, 2 * full), multiple, params)
    assert [height for height, _ in wide] == sides and wide[-1] == (full, 2 * full)


def test_images_shrink_as_pillow_shrinks_them() -> None:
    photos = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 32, 40, 3), dtype=np.uint8))
    small = resized(photos, (20, 28))
    assert small.shape == (3, 20, 28, 3) and small.dtype == torch.uint8 and small.is_contiguous()
    expected = [np.asarray(Image.fromarray(photo).resize((28, 20), Image.Resampling.BILINEAR)) for photo in photos.numpy()]
    assert np.abs(small.numpy().astype(int) - np.stack(expected)).max() <= 1  # the sums are rounded in two places
    assert resized(photos, (32, 40)) is photos


def run(folder: Path, family: Family = "cnn", **changes: Any) -> TrainResult:
    settings: dict[str, Any] = {"initial_scale": 0.5, "full_scale_from": 0.5, "vit_options": VIT, **changes}
    data, val, meta = worlds.split(96, 0, size=16), worlds.split(48, 1, size=16), worlds.meta(size=16)
    return train(family, data, val, meta, worlds.params(**settings), resume=folder)


VIT = {"patch": 4, "width": 32, "depth": 2}


@pytest.mark.parametrize("family", ["cnn", "vit"])
def test_a_network_learns_on_images_that_grow_and_is_validated_on_full_ones(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[bool, list[int]] = {True: [], False: []}
    call = Forward.__call__

    def noted(self: Forward, images: Tensor) -> tuple[Tensor, Tensor]:
        seen[torch.is_grad_enabled()].append(images.shape[1])
        return call(self, images)

    monkeypatch.setattr(Forward, "__call__", noted)
    result = run(tmp_path, family, epochs=16)
    steps = 6  # of 96 images in batches of 16
    assert seen[True] == [8] * 4 * steps + [12] * 4 * steps + [16] * 8 * steps
    assert set(seen[False]) == {16}
    assert result.best.val_accuracy >= 0.9


class StoppedError(Exception):
    """The run ends here, as an interrupted one does."""


def test_going_on_among_smaller_images_gives_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(tmp_path / "whole", "vit", epochs=4).classifier.state_dict()
    batches = train_batches

    def cut(*arguments: Any, epoch: int, **more: Any) -> Any:
        if epoch == 2:
            raise StoppedError
        return batches(*arguments, epoch=epoch, **more)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_batches", cut)
        with pytest.raises(StoppedError):
            run(tmp_path / "cut", "vit", epochs=4)
    again = run(tmp_path / "cut", "vit", epochs=4)
    assert again.resumed_after == 1
    assert all(torch.equal(value, again.classifier.state_dict()[key]) for key, value in whole.items())


def test_steps_are_timed_on_full_images_and_none_is_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timed = []
    measure = loop.measure_execution  # type: ignore[attr-defined]

    def noted(model: Classifier, images: Tensor, labels: Tensor, *rest: Any, **more: Any) -> Any:
        timed.append(tuple(images.shape))
        return measure(model, images, labels, *rest, **more)

    monkeypatch.setattr(loop, "measure_execution", noted)
    result = run(tmp_path, epochs=2, compile="auto")
    assert timed == [(16, 16, 16, 3)]
    assert result.notes == ("Steps are not compiled: initial_scale makes images of several sizes.",)


def test_patience_counts_from_the_first_epoch_of_full_images_on(tmp_path: Path) -> None:
    """A ViT, which has no running statistics, answers the same after each epoch at a rate of almost 0."""
    still: dict[str, Any] = {"epochs": 12, "early_stopping_epochs": 2, "learning_rate": 1e-30, "full_scale_from": 0.5}
    for scale, epochs in ((0.5, 6 + 2), (1.0, 1 + 2)):
        result = run(tmp_path / str(scale), "vit", **still, initial_scale=scale)
        assert (result.best.epoch, len(result.history)) == (1, epochs)


def test_a_teacher_sees_full_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    student = Forward.__call__

    def noted(self: Forward, images: Tensor) -> tuple[Tensor, Tensor]:
        if torch.is_grad_enabled():
            seen.append((images.shape[1], 0))
        return student(self, images)

    class Noted(Teacher):
        def __call__(self, images: Tensor) -> Tensor:
            seen[-1] = (seen[-1][0], images.shape[1])
            return super().__call__(images)

    known = Noted(classifier_of(16), (16, 16))
    monkeypatch.setattr(Forward, "__call__", noted)
    monkeypatch.setattr(loop, "load_teacher", lambda settings, meta: known)
    run(tmp_path, epochs=2)
    assert seen == [(8, 16)] * 6 + [(16, 16)] * 6


def classifier_of(side: int) -> Classifier:
    return build(
        "small_resnet", num_classes=3, image_size=(side, side), mean=(0.5,) * 3, std=(0.25,) * 3,
        options={"width": 8, "stages": 2},
    )  # fmt: skip


@pytest.mark.parametrize("stem", ["patch", "conv", "tokenizer", "whitened"])
def test_positions_of_another_grid_are_those_between(stem: str) -> None:
    options: dict[str, Any] = {**VIT, "stem": stem}
    network = small_vit.build(3, (32, 32), options).eval()
    side = network.grid[0]
    rows = torch.arange(float(side)).repeat_interleave(side)[None, :, None]
    with torch.no_grad():
        network.positions.copy_(rows.expand_as(network.positions))
        fewer = network._positions(side - 2, side)[0, :, 0].reshape(side - 2, side)
    assert network._positions(side, side) is network.positions
    # A slope stays one: equal along a row, from top to bottom in equal steps but for the borders, about the same middle.
    assert torch.allclose(fewer, fewer[:, :1].expand_as(fewer), atol=1e-5)
    assert float(fewer.mean()) == pytest.approx((side - 1) / 2, abs=1e-4)
    assert torch.equal(fewer[:, 0].argsort(), torch.arange(side - 2))
    answer = network.embed(torch.zeros(2, 3, 24, 24))
    assert answer.shape == (2, 32) and bool(answer.isfinite().all())


def classifier(name: str, side: int, **options: Any) -> Classifier:
    with torch.device("meta"):
        return build(name, num_classes=3, image_size=(side, side), mean=(0.5,) * 3, std=(0.25,) * 3, options=options)


def test_a_network_of_one_size_is_refused() -> None:
    half = worlds.params(initial_scale=0.5, full_scale_from=0.5)
    with pytest.raises(
        ConfigError, match=r"initial_scale is 0\.5, but vit_b_16 cannot take images of 112 x 112 pixels \(.*\); raise it"
    ):
        check_sizes(classifier("vit_b_16", 224), (224, 224), half)
    with pytest.raises(ConfigError, match=r"speed_net cannot take images of 4 x 4 pixels \(.*Output size is too small"):
        check_sizes(classifier("speed_net", 9), (9, 9), half)
    with pytest.raises(ConfigError, match=r"images of 16 x 16 pixels have no smaller size whose sides are multiples of 16"):
        check_sizes(classifier("small_vit", 16, patch=16), (16, 16), half)
    whole = worlds.params(initial_scale=1.0, full_scale_from=0.5)
    check_sizes(classifier("vit_b_16", 224), (224, 224), whole)


@pytest.mark.parametrize(
    ("name", "side"),
    [("small_resnet", 16), ("speed_net", 32), ("small_vit", 16), ("small_vit whitened", 32), ("resnet18", 64),
     ("mobilenet_v3_small", 64), ("efficientnet_b0", 64), ("convnext_tiny", 64), ("swin_t", 64)],
)  # fmt: skip
def test_the_others_take_smaller_images_and_stay_as_they_were(name: str, side: int) -> None:
    name, _, stem = name.partition(" ")
    found = classifier(name, side, **({"stem": stem} if stem else {}))
    check_sizes(found, (side, side), worlds.params(initial_scale=0.5, full_scale_from=0.5))
    assert found.training
