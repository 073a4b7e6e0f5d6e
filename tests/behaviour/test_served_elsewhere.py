"""The reader of docs/serve-elsewhere.md, which has nothing of this project, finds the same pixels and the same answers."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from tests.torch_models import fresh_onnx
from visionloop.evaluation import odd_images
from visionloop.features import softmax
from visionloop.preprocess import RULES, Fit, PreprocessSpec, preprocess
from visionloop.runtime import OnnxModel

PAGE = Path(__file__).parents[2] / "docs" / "serve-elsewhere.md"
CODE = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[0]
PICTURE = Image.fromarray(np.random.default_rng(3).integers(0, 256, (7, 9, 3), dtype=np.uint8)).resize((90, 60))


SPEC = PreprocessSpec(16, 16, fit="letterbox", filter="lanczos")  # neither of which a default would meet by chance


@pytest.fixture(scope="module")
def exported() -> bytes:
    """As `export` writes a model with this spec."""
    proto = onnx.load_from_string(fresh_onnx("cnn"))
    next(item for item in proto.metadata_props if item.key == "preprocess").value = json.dumps({**asdict(SPEC), **RULES})
    return bytes(proto.SerializeToString())


@pytest.fixture
def reader(exported: bytes, tmp_path: Path) -> Any:
    assert "visionloop" not in CODE
    (tmp_path / "model.onnx").write_bytes(exported)
    names: dict[str, Any] = {}
    exec(CODE, names)  # noqa: S102 - the text of the page is what is tested
    return names["Reader"](tmp_path / "model.onnx")


def test_all_it_needs_is_in_the_files_metadata(reader: Any, exported: bytes) -> None:
    model = OnnxModel(exported)
    files = list(odd_images.answered(PICTURE, SPEC))
    assert len(files) == 60
    for file in files:
        expected = preprocess(file.data, SPEC)
        np.testing.assert_array_equal(reader.pixels(file.data), expected, err_msg=file.kind)
        label, probabilities = reader.answer(file.data)
        logits, _ = model.run(expected[None])
        assert label == "0123456789"[int(logits.argmax())]
        np.testing.assert_allclose(probabilities, softmax(logits)[0], atol=1e-6)


@pytest.mark.parametrize("fit", ["stretch", "crop", "letterbox"])
@pytest.mark.parametrize("size", [(16, 16), (24, 10), (10, 24)])
def test_every_fit_is_described_to_the_pixel(reader: Any, fit: Fit, size: tuple[int, int]) -> None:
    for name in ("nearest", "box", "bilinear", "bicubic", "lanczos"):
        spec = replace(PreprocessSpec(*size), fit=fit, filter=name)
        reader.spec = {**RULES, "height": spec.height, "width": spec.width, "fit": fit, "filter": name}
        for width, height in ((90, 60), (5, 7), (1, 40), (400, 3), (24, 10), (37, 53)):
            data = odd_images.png_16_bit(np.asarray(PICTURE.resize((width, height))).astype(np.uint16) * 257)
            np.testing.assert_array_equal(reader.pixels(data), preprocess(data, spec), err_msg=f"{name} {width}x{height}")


def test_the_page_names_every_key_and_every_rule(exported: bytes) -> None:
    text = PAGE.read_text()
    rows = set(re.findall(r"^\| ([`\w, ]+) \|", text, re.MULTILINE))
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert {*RULES, "height", "width", "fit", "filter"} <= named
    assert set(OnnxModel(exported).metadata) <= named
