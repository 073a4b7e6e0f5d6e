"""visionloop.evaluation.agreement: distances by hand, what is beyond a tolerance, and the page that shows it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.browser import chromium, needs_chromium
from visionloop.config import Tolerance, Tolerances, load_params
from visionloop.evaluation.agreement import TOLD, compare, flat, log_probabilities, other_decoder
from visionloop.evaluation.agreement_page import Contract, Kind, Refusal, Shown, render
from visionloop.features import softmax

ROOT = Path(__file__).parents[3]
TIGHT = Tolerance(min_agreement=1.0, max_logit_distance=0.1, mean_logit_distance=0.05)
LOGITS = np.array([[3.0, 1.0, 0.0], [0.0, 2.0, 1.0], [1.0, 1.0, 0.5]])  # the last is a tie
EVIL = '<script>alert("x")</script>'


def test_equal_answers_are_no_distance_apart() -> None:
    pair = compare("a_b", ("A", "B"), LOGITS, LOGITS.astype(np.float32), tolerance=("onnx", TIGHT))
    assert flat([pair]) == {"a_b": {"agreement": 1.0, "max_logit_distance": 0.0, "mean_logit_distance": 0.0}}
    assert (pair.over, pair.disagreeing) == ((), ())


def test_distances_and_sentences_by_hand() -> None:
    other = LOGITS + np.array([[0, 0.36, 0], [0.09, 0, 1.2], [0, 0, 0]])
    embeddings = (np.array([[4.0, -10.0]]), np.array([[4.0, -8.0]]))
    pair = compare("a_b", ("A", "B"), LOGITS, other, tolerance=("bytes", TIGHT), embeddings=embeddings)
    assert pair.by_image == pytest.approx([0.36, 1.2, 0])
    assert pair.disagreeing == (1,)
    assert pair.distance.mean_logit_distance == pytest.approx(1.65 / 9)
    assert pair.over == (
        "A and B agree on 66.67% of 3 images (1 differ), below parity.tolerances.bytes.min_agreement: 1",
        "A and B differ by up to 1.2 of a logit, above parity.tolerances.bytes.max_logit_distance: 0.1",
        "A and B differ by on average 0.183 of a logit, above parity.tolerances.bytes.mean_logit_distance: 0.05",
        "A and B differ by up to 0.2 of the embedding's largest number, above "
        "parity.tolerances.bytes.max_logit_distance: 0.1",
    )


def test_a_tie_may_break_either_way_and_is_shown() -> None:
    other = LOGITS + np.array([[0, 0, 0], [0, 0, 0], [0, 1e-5, 0]])
    pair = compare("a_b", ("A", "B"), LOGITS, other, tolerance=("onnx", TIGHT))
    assert (pair.distance.agreement, pair.disagreeing, pair.over) == (1.0, (2,), ())


def test_only_the_judged_images_count_and_all_are_shown() -> None:
    other = LOGITS + np.array([[0.01, 0, 0], [0, 0, 5], [0, 0, 5]])
    pair = compare("a_b", ("A", "B"), LOGITS, other, tolerance=("shipped", TIGHT), judged=1)
    assert (pair.distance.images, pair.distance.agreement, pair.over) == (1, 1.0, ())
    assert pair.distance.max_logit_distance == pytest.approx(0.01)
    assert (list(pair.by_image[1:]), pair.disagreeing) == ([5, 5], (1, 2))


def test_without_limits_a_pair_is_told_and_not_judged() -> None:
    pair = compare("a_b", ("A", "B"), LOGITS, LOGITS + 9 * np.eye(3)[[1, 2, 0]], tolerance=(TOLD, None))
    assert pair.distance.max_logit_distance == 9 and pair.disagreeing and pair.over == ()


@pytest.mark.parametrize("place", [0, 2])
def test_nan_is_beyond_every_tolerance(place: int) -> None:
    other = LOGITS.copy()
    other[place, 0] = np.nan
    wide = Tolerance(min_agreement=0, max_logit_distance=1000, mean_logit_distance=1000)
    assert len(compare("a_b", ("A", "B"), LOGITS, other, tolerance=("onnx", wide)).over) == 2


def test_the_class_that_a_server_names_counts_and_not_its_highest_probability() -> None:
    pair = compare("a_b", ("A", "B"), LOGITS, LOGITS, tolerance=("bytes", TIGHT), answers=[0, -1, 0])
    assert pair.disagreeing == (1,)
    assert pair.over[0].startswith("A and B agree on 66.67%")


def test_probabilities_say_the_logits_but_for_a_constant() -> None:
    logits = np.array([[12.0, -3.0, 0.5], [-100.0, 5.0, 5.0]])
    found = log_probabilities(softmax(logits).astype(np.float32))
    assert found[0] - found[0, :1] == pytest.approx(logits[0] - logits[0, 0], abs=1e-5)
    assert found[1, 0] == pytest.approx(np.log(1e-30))  # too small for float32 to say more


def test_another_decoder_is_named() -> None:
    assert other_decoder({"pillow": "13.0.0", "zlib": "1.3"}, {"pillow": "13.0.0", "zlib": "1.3"}) == ""
    assert other_decoder({"pillow": "13.0.0", "webp": "1.6"}, {"pillow": "11.3.0"}) == (
        "The served models decode with another pillow, webp (11.3.0, none) than the project (13.0.0, 1.6)."
    )


def contract() -> Contract:
    other = LOGITS + np.array([[0, 0.36, 0], [0.09, 0, 1.2], [0, 0, 0]])
    pair = compare("a_b", ("torch", f"served by file {EVIL}"), LOGITS, other, tolerance=("bytes", TIGHT))
    return Contract(
        title=f"Parity of {EVIL}",
        sentences=["Not all is within."],
        over=pair.over,
        tiles=[("3", "images")],
        pairs=[
            pair,
            compare("b_c", ("B", "C"), LOGITS, LOGITS, tolerance=("onnx", TIGHT)),
            compare("c_d", ("C", "D"), LOGITS, other, tolerance=(TOLD, None)),
        ],
        by_kind=[pair],
        kinds=[Kind("JPEG, EXIF orientation 6", 2, 1, (0.36,))],
        refusals=[Refusal("TIFF", "The bytes are TIFF.", "The bytes are TIFF.", True), Refusal("GIF", "no", "", False)],
        decoders=[("pillow", "13.0.0", "11.3.0")],
        decoder_sentence="The served models decode with another pillow.",
        graphs=[("models/shipped/model.onnx", {"megabytes": "0.100", "opset": 20})],
        shown=[Shown("PNG (image 2)", np.zeros((8, 8, 3), np.uint8), [("torch", f"{EVIL}, 0.9")])],
        disagreeing=2,
    )


def test_the_page_says_what_is_beyond_and_by_which_limit() -> None:
    tolerances = load_params(ROOT / "params.yaml").parity.tolerances
    page = render(contract(), tolerances)
    assert "<script" not in page
    assert page.count("beyond</td>") == 1 and page.count("within</td>") == 1 and page.count("told</td>") == 1
    assert '<td class="bad">66.67 %' in page and "at least 100 %" in page
    assert '<td class="bad">1.2e+00' in page and "at most 0.001" in page
    assert "same sentence" in page and "answered</td>" in page
    assert page.count("data:image/png;base64,") == 1
    assert "2 of them, the first\n1 here" in page
    assert set(Tolerances.model_fields) == {"onnx", "shipped", "tensor", "bytes"}


@needs_chromium
def test_the_page_fits_a_phone_and_a_screen_and_asks_for_nothing(tmp_path: Path) -> None:
    page = tmp_path / "parity.html"
    page.write_text(render(contract(), load_params(ROOT / "params.yaml").parity.tolerances))
    with chromium(tmp_path) as browser:
        for width, scheme in ((390, "dark"), (1280, "light")):
            browser.open(page, width, scheme, is_phone=width < 500)  # type: ignore[arg-type]
            assert browser.evaluate("document.documentElement.scrollWidth") <= width
            assert browser.requests == [page.as_uri()] or all(one.startswith(("file:", "data:")) for one in browser.requests)
            assert browser.complaints == []
