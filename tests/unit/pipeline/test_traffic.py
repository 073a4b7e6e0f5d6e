"""Which held-out images are sent to an endpoint: those that it takes, and no more than memory bears."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import traffic
from pipeline.params_text import with_values
from pipeline.stages import clean, collect, split
from visionloop.config import ServeParams, load_section
from visionloop.data.splitting import read_split
from visionloop.errors import DataError
from visionloop.paths import SPLIT

ROOT = Path(__file__).parents[3]
SIZES = {"small": (40, 30), "many pixels": (1300, 1000), "many bytes": (900, 900)}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of images of each size, through the stages collect, clean and split."""
    tmp_path = tmp_path_factory.mktemp("held out")
    rng = np.random.default_rng(0)
    for label in ("one", "two"):
        (tmp_path / "data/raw" / label).mkdir(parents=True)
        for kind, (width, height) in SIZES.items():
            for number in range(10 if kind == "small" else 6):
                # Coarse noise makes files of few bytes, fine noise one of many.
                coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
                image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
                if kind == "many bytes":
                    image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
                image.save(tmp_path / "data/raw" / label / f"{kind} {number}.png")
    for name in ("params.yaml", "data/decisions.csv"):
        shutil.copy(ROOT / name, tmp_path / name)
    changes = {
        "compute": {"workers": 1},
        "collect": {"source": "folder", "path": "data/raw", "options": {}},
        "clean": {"blank_contrast": 0, "near_duplicate_error": 0, "outliers": False, "suspect_labels": False},
        "split": {"by_group": False, "max_difference": 1},
        "serve": {"max_image_megapixels": 1, "max_image_megabytes": 2},
    }
    path = tmp_path / "params.yaml"
    path.write_text(with_values(path.read_text(), changes))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        for stage in (collect, clean, split):
            stage.main()
    return tmp_path


@pytest.fixture
def project(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made)
    return made


def test_images_beyond_the_servers_limits_are_not_sent(project: Path) -> None:
    held = {row.id for row in read_split(SPLIT) if row.split != "train"}
    found = traffic.held_out(load_section(ServeParams))
    sizes = {Image.open(io.BytesIO(image.data)).size for image in found}
    assert sizes == {SIZES["small"]}
    assert 0 < len(found) < len(held)
    assert {image.label for image in found} == {"one", "two"}
    assert [image.data for image in found] == [image.data for image in traffic.held_out(load_section(ServeParams))]


def test_so_many_bytes_are_held_and_one_image_in_any_case(project: Path) -> None:
    serve = load_section(ServeParams)
    whole = traffic.held_out(serve)
    two = sum(len(image.data) for image in whole[:2])
    assert traffic.held_out(serve, most_bytes=two) == whole[:2]
    assert traffic.held_out(serve, most_bytes=two - 1) == whole[:1]
    assert traffic.held_out(serve, most_bytes=1) == whole[:1]


def test_where_the_server_takes_none_the_keys_to_raise_are_named(project: Path) -> None:
    serve = load_section(ServeParams).model_copy(update={"max_image_megapixels": 0.001})
    with pytest.raises(
        DataError, match=r"None of the \d+ held-out images is within serve\.max_image_megabytes and serve\.max"
    ):
        traffic.held_out(serve)
