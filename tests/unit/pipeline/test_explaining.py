"""`visionloop explain`: one image by its file or by its prediction, and the sentence for what cannot be explained."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import explaining
from serving.images import image_path
from serving.repository import Release, version_folder
from serving.store import Store
from tests import torch_models
from tests.helpers_serving import answered_row, rejected_row
from visionloop.errors import ArtifactError, ConfigError, ImageError, PipelineError
from visionloop.files import sha256_bytes, write_bytes, write_json, write_text
from visionloop.paths import LIVE_IMAGES, MODEL_ONNX, MODEL_REPOSITORY, MODEL_TORCH, RELEASE, evaluate_report, family_folder
from visionloop.preprocess import encode_png

ROOT = Path(__file__).parents[3]
PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
DATA = encode_png(PIXELS)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """The store of a project with a CNN and a ViT, of which version 1 serves the CNN."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    families: tuple[torch_models.Family, ...] = ("cnn", "vit")
    for family in families:
        model, card = torch_models.fresh(family)
        buffer = io.BytesIO()
        torch.save(model.state_dict(), buffer)
        write_bytes(family_folder(family) / MODEL_TORCH, buffer.getvalue())
        card.with_files(family_folder(family), (MODEL_TORCH,)).write(family_folder(family))
    _, card = torch_models.fresh("cnn")
    served = version_folder(MODEL_REPOSITORY, 1)
    write_bytes(served / MODEL_ONNX, torch_models.fresh_onnx("cnn"))
    card = card.with_files(served, (MODEL_ONNX,))
    card.write(served)
    release = Release(champion=1, previous=None, model_sha256=card.files[MODEL_ONNX], precision="fp32", family="cnn")
    write_json(MODEL_REPOSITORY / RELEASE, release.model_dump())
    write_json(evaluate_report("cnn") / "explanation_detail.json", {"method": "layercam"})
    with Store("sqlite:///var/store.db") as opened:
        opened.create()
        yield opened


def test_a_file_is_explained_by_the_served_family_and_its_measured_method(store: Store, tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(DATA)
    asked = explaining.from_file(tmp_path / "photo.png")
    found = explaining.run(asked, "shipped", tmp_path / "out.png")
    assert (found.family, found.explained.method) == ("cnn", "layercam")
    label, share = found.explained.labels[0], found.explained.probabilities[0]
    assert found.notes == (f"The served version 1 answers {label} ({share:.1%}) and agrees with the explained network.",)
    with Image.open(tmp_path / "out.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > 700
    other = explaining.run(asked, "vit", tmp_path / "out.png")
    assert (other.family, other.explained.method) == ("vit", "integrated_gradcam")
    assert "names no method, so maps are made by integrated Grad-CAM" in other.notes[0]
    assert other.notes[1].endswith("is a small_resnet, and the explained network a small_vit.")


def test_a_prediction_is_explained_from_its_kept_image(store: Store, tmp_path: Path) -> None:
    row = replace(answered_row("a", label="other"), image_sha256=sha256_bytes(DATA))
    store.write_predictions([row, rejected_row("b", "truncated")])
    with pytest.raises(PipelineError, match=r"a is not kept \(serve.keep_images is 0, so no image is: set it to the share"):
        explaining.from_store("a")
    params = Path("params.yaml").read_text(encoding="utf-8")
    write_text(Path("params.yaml"), params.replace("keep_images: 0.0 ", "keep_images: 0.5 "))
    with pytest.raises(PipelineError, match=r"keeps a share of 0\.5, and the oldest go when"):
        explaining.from_store("a")
    write_bytes(image_path(LIVE_IMAGES, sha256_bytes(DATA)), DATA)
    found = explaining.run(explaining.from_store("a"), "shipped", tmp_path / "a.png")
    assert found.notes == (
        "The served version 1 answered other (50.0%) and differs from the explained network, which was trained again or is "
        "less rounded.",
    )
    gone = replace(row, prediction_id="c", model_version="7")
    store.write_predictions([gone])
    found = explaining.run(explaining.from_store("c"), "cnn", tmp_path / "c.png")
    assert found.notes[0].endswith("answered other (50.0%) and is not in the model repository any more.")
    with pytest.raises(PipelineError, match=r"b is a refused image \(truncated\); there is no answer to explain"):
        explaining.from_store("b")
    with pytest.raises(PipelineError, match="no prediction 'x'; take the id that the endpoint answered"):
        explaining.from_store("x")


def test_what_is_no_image_or_no_place_for_one_is_told(store: Store, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"absent.png cannot be read \(No such file or directory\); name an image file"):
        explaining.from_file(tmp_path / "absent.png")
    with pytest.raises(ConfigError, match=r"out.jpg, and the picture is a PNG"):
        explaining.run(explaining.Asked("a", DATA), "cnn", tmp_path / "out.jpg")
    with pytest.raises(ImageError, match="not a JPEG, PNG, WebP or BMP"):
        explaining.run(explaining.Asked("a", b"hello"), "cnn", tmp_path / "out.png")
    (MODEL_REPOSITORY / RELEASE).unlink()
    with pytest.raises(ArtifactError, match=r"No model is deployed, and models/selected\.json names none"):
        explaining.run(explaining.Asked("a", DATA), "shipped", tmp_path / "out.png")
    alone = explaining.run(explaining.Asked("a", DATA), "cnn", tmp_path / "out.png")
    assert alone.notes == ("No model is deployed to compare with.",)
