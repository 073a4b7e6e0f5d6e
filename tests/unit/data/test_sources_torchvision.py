"""torchvision's own readers on small sets that are written here in their formats."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from visionloop.data.sources.torchvision import NO_TIME, Options, TorchvisionSource
from visionloop.errors import ConfigError, DataError
from visionloop.preprocess import decode

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    folder = tmp_path / "MNIST/raw"
    folder.mkdir(parents=True)
    for side, pixels in (("train", PIXELS[:3]), ("t10k", PIXELS[3:])):
        (folder / f"{side}-images-idx3-ubyte").write_bytes(
            struct.pack(">iiii", 0x803, len(pixels), 28, 28) + pixels.tobytes()
        )
        (folder / f"{side}-labels-idx1-ubyte").write_bytes(
            struct.pack(">ii", 0x801, len(pixels)) + bytes(range(len(pixels)))
        )
    return tmp_path


def test_arrays_become_lossless_png_with_class_names_and_sides(mnist: Path) -> None:
    source = TorchvisionSource(mnist, Options(dataset="MNIST"))
    images = list(source)
    assert len(source) == 5
    assert [(image.label, image.split_hint, image.path) for image in images] == [
        ("0 - zero", "train", "train/0 - zero/000000.png"),
        ("1 - one", "train", "train/1 - one/000001.png"),
        ("2 - two", "train", "train/2 - two/000002.png"),
        ("0 - zero", "test", "test/0 - zero/000000.png"),
        ("1 - one", "test", "test/1 - one/000001.png"),
    ]
    assert [(image.time, image.labelled_by) for image in images] == [(NO_TIME, "MNIST")] * 5
    for image, pixels in zip(images, PIXELS, strict=True):
        decoded = decode(image.data)
        assert decoded.format == "PNG"
        assert np.array_equal(np.asarray(decoded.image)[:, :, 0], pixels)


def test_a_set_of_class_folders_gives_its_files_as_they_are(tmp_path: Path, draw: Callable[..., bytes]) -> None:
    files = {f"eurosat/2750/{label}/{label}_{i}.jpg": draw(i, kind="JPEG") for i, label in enumerate(("Forest", "River"))}
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(data)
    images = list(TorchvisionSource(tmp_path, Options(dataset="EuroSAT")))
    assert {image.path: image.data for image in images} == files
    assert [image.label for image in images] == ["Forest", "River"]


def test_an_unknown_name_is_answered_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no data set 'cifar-10'; did you mean 'CIFAR10'\?"):
        TorchvisionSource(tmp_path, Options(dataset="cifar-10"))
    with pytest.raises(ConfigError, match=r"no data set 'qqqqqqqq'; its documentation lists them"):
        TorchvisionSource(tmp_path, Options(dataset="qqqqqqqq"))


@pytest.mark.parametrize("name", ["CIFAR10", "MNIST", "Flowers102", "EuroSAT", "SVHN"])
def test_a_set_that_is_not_there_is_not_fetched_unasked(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=rf"torchvision's {name} is not below .* set collect.options.download: true"):
        TorchvisionSource(tmp_path, Options(dataset=name))
    assert list(tmp_path.rglob("*.tar*")) == []


def test_a_failed_download_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torchvision.datasets.MNIST.mirrors", ["http://127.0.0.1:9/"])
    with pytest.raises(DataError, match=r"MNIST could not be fetched into data/downloads: .*Run this again"):
        TorchvisionSource(tmp_path, Options(dataset="MNIST", download=True))


def test_a_split_that_the_set_does_not_know_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"collect.options.split: Unknown value 'tain' for argument split"):
        TorchvisionSource(tmp_path, Options(dataset="SVHN", split="tain"))


def test_a_set_without_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"CocoDetection takes other arguments .*take another set"):
        TorchvisionSource(tmp_path, Options(dataset="CocoDetection"))
