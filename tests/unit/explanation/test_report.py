"""What the stage writes, and which method it takes."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from tests.unit.explanation import tiny
from tests.unit.explanation.test_faithfulness import blobs
from visionloop.card import Calibration, ModelCard
from visionloop.data.packing import PackedSplit
from visionloop.errors import ArtifactError
from visionloop.evaluation.predictions import SplitPredictions
from visionloop.explanation import pictures, report
from visionloop.explanation.single import explain, explained_png
from visionloop.preprocess import PreprocessSpec
from visionloop.records import Split

LABELS = ("$red", "ein sehr langer Name einer Klasse", "日本")


def world(count: int = 30) -> tuple[dict[Split, PackedSplit], dict[Split, SplitPredictions]]:
    """The same coloured squares on both sides; the last is answered wrongly."""
    images, labels = blobs(count)
    ids = [str(index) for index in range(count)]
    probabilities = np.full((count, 3), 0.05)
    probabilities[np.arange(count), labels] = 0.9
    probabilities[-1:] = np.roll(probabilities[-1:], 1, axis=1)
    data = PackedSplit(images, labels, ids)
    answers = SplitPredictions(tuple(ids), labels, probabilities)
    return {"val": data, "test": data}, {"val": answers, "test": answers}


def write(folder: Path, *, explained_images: int = 5, setting: str = "auto") -> str:
    sides, splits = world()
    return report.write(
        folder, tiny.colours(), LABELS, sides, splits, setting=setting,  # type: ignore[arg-type]
        explained_images=explained_images, mistake_images=4, title="cnn (linear)",
    )  # fmt: skip


def size(png: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(png)) as image:
        image.load()
        return image.size


def test_a_network_whose_evidence_is_known_passes_and_the_same_data_write_the_same_files(tmp_path: Path) -> None:
    sentence = write(tmp_path / "a")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == sorted(report.FILES)
    numbers = json.loads((tmp_path / "a" / "explanation.json").read_text())
    assert all(isinstance(value, int | float) for value in numbers.values())
    assert numbers["chance"] == 0.25
    assert numbers["order_images"] == 29  # rightly answered ones
    for method in ("gradcam", "layercam", "integrated_gradcam", "integrated_gradients"):
        assert [numbers[f"{method}_{test}"] for test in ("corner", "pair", "patch")] == [1, 1, 1]
        assert numbers[f"{method}_deletion"] < numbers["random_deletion"]
        assert numbers[f"{method}_insertion"] == 1  # a blur keeps the mean colour, which is all that this network sees
    assert numbers["completeness_gap"] < 1e-4
    detail = json.loads((tmp_path / "a" / "explanation_detail.json").read_text())
    assert detail["method"] == "gradcam"  # among equal ones the first
    assert sorted(detail["pictures"]) == sorted(name for name in report.FILES if name.endswith(".png"))
    assert "does best on the val images" in detail["reason"]
    assert "100% (corner), 100% (pair), 100% (patch); by chance it would in 25%" in sentence
    write(tmp_path / "b")
    for name in report.FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_a_model_without_a_right_answer_has_no_areas_and_a_sentence(tmp_path: Path) -> None:
    sides, splits = world()
    wrong = {side: replace(one, probabilities=np.roll(np.eye(3)[one.targets], 1, axis=1)) for side, one in splits.items()}
    said = report.write(
        tmp_path, tiny.colours(), LABELS, sides, wrong, setting="auto", explained_images=2, mistake_images=2, title="cnn"
    )
    assert "no val image is answered rightly to choose by" in said
    assert said.endswith("No test image is answered rightly, so insertion and deletion have nothing to show.")
    numbers = json.loads((tmp_path / "explanation.json").read_text())
    assert numbers["order_images"] == 0
    assert not [name for name in numbers if name.endswith(("_insertion", "_deletion"))]
    assert size((tmp_path / "explanation_proof.png").read_bytes())[0] > 1000


def test_the_method_of_the_params_is_taken_where_the_network_has_what_it_needs(tmp_path: Path) -> None:
    sides, splits = world()
    model = tiny.colours()
    chosen = report.choose(model, sides["val"].images, splits["val"], "layercam")
    assert chosen == report.Chosen("layercam", "Maps are made by LayerCAM, as evaluate.explanation says.")
    instead = report.choose(model, sides["val"].images, splits["val"], "rollout")
    assert instead.method == "gradcam"
    assert instead.reason.startswith(
        "The linear has no attention over the whole image to roll out. Maps are made by Grad-CAM"
    )
    none = SplitPredictions((), np.zeros(0, np.int64), np.zeros((0, 3)))
    empty = report.choose(model, sides["val"].images[:0], none, "auto")
    assert empty.method == report.FALLBACK
    assert empty.reason.endswith("no val image is answered rightly to choose by.")


def test_no_explanation_is_asked_for(tmp_path: Path) -> None:
    assert write(tmp_path, explained_images=0) == "No explanation was asked for (evaluate.explained_images is 0)."
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(report.FILES)
    assert json.loads((tmp_path / "explanation.json").read_text()) == {}


CARD = ModelCard(
    family="cnn", architecture="linear", labels=LABELS, preprocess=PreprocessSpec(16, 16), mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0), embedding_size=3, precision="fp32", parameters=9,
)  # fmt: skip


def test_one_image_is_explained_for_its_answer_and_the_runner_up() -> None:
    image: npt.NDArray[np.uint8] = np.zeros((16, 16, 3), np.uint8)
    image[:4, :4, 2], image[12:, 12:, 0] = 255, 200
    calibration = Calibration(temperature=2.0, precision_thresholds={}, unknown=None, review_below=0.99, review_share=0.1)
    found = explain(tiny.colours(), CARD, image, "gradcam", calibration=calibration)
    assert found.labels == (LABELS[2], LABELS[0])
    logits = np.array([60 / 16 * 200 / 255, 0, 60 / 16]) / 2  # the temperature is 2
    shares = np.exp(logits) / np.exp(logits).sum()
    assert found.probabilities == pytest.approx((shares[2], shares[0]), rel=1e-5)
    assert found.maps[0, :4, :4].min() == found.maps[1, 12:, 12:].min() == 1
    assert found.maps.sum() == 32
    assert found.doubts == ("review",)
    png = explained_png(found, "one image with $", ("A note.",))
    assert png == explained_png(found, "one image with $", ("A note.",))
    assert size(png)[0] > 700


def test_an_image_of_another_size_is_refused() -> None:
    with pytest.raises(ArtifactError, match="an array of 8 x 16 x 3, and the model takes 16 x 16 x 3; bring it"):
        explain(tiny.colours(), CARD, np.zeros((8, 16, 3), np.uint8), "gradcam")


def test_maps_cover_as_strongly_as_they_speak_and_sheets_bear_any_shape() -> None:
    image = np.full((4, 6, 3), 100, np.uint8)
    heat = np.zeros((4, 6))
    heat[0, 0] = 1
    laid = pictures.laid_over(image, heat)
    assert (laid[1:] == 100).all()
    top = pictures.map_tile(heat)[0, 0].astype(float)
    np.testing.assert_allclose(laid[0, 0], 0.7 * top + 0.3 * 100, atol=0.51)
    signed = pictures.signed_tile(np.array([[-2.0, 0.0, 2.0]]))[0].astype(int)
    assert signed[0, 2] > signed[0, 0]  # blue takes away
    assert signed[2, 0] > signed[2, 2]  # red adds
    box = np.zeros((4, 6), np.bool_)
    box[:2, :3] = True
    line = (pictures.boxed(image, box) == (0, 200, 255)).all(-1)
    assert line[16, 0]  # the image has 64 of the 96 rows, below 16 of gray
    assert not line[30, 20]
    items = [pictures.map_item(image, heat, "a\nb", bad=True)] * 5
    assert (
        size(pictures.sheet_png(items, "t", "a note", across=12))[0] > size(pictures.sheet_png(items, "t", "n", across=3))[0]
    )
    assert size(pictures.sheet_png([], "t", "Nothing to see.", across=12)) == (880, 220)
    assert pictures.answer_caption("cat", "dog") == "cat, called dog"
