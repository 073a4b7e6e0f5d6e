"""pipeline.stages.parity: what is said of decoders that read files to other pixels."""

from __future__ import annotations

from pipeline.stages.parity import AS_COLLECTED, Found, _decoder_sentence

KINDS = [AS_COLLECTED, AS_COLLECTED, "gray JPEG", "CMYK JPEG"]
OLD, NEW = {"Pillow": "12.3.0"}, {"Pillow": "13.0.0"}


def found(unread: list[int], *, served: dict[str, str]) -> Found:
    return Found([], [], unread, (OLD, served), [])


def test_the_same_libraries_and_pixels() -> None:
    said = _decoder_sentence(found([], served=OLD), KINDS)
    assert said == "Both have the same libraries. They read all 4 files to the same pixels."


def test_another_library_that_changes_pixels_is_counted_by_kind() -> None:
    said = _decoder_sentence(found([3, 1], served=NEW), KINDS)
    assert "12.3.0" in said and "13.0.0" in said
    assert said.endswith(" They read 2 of 4 files to other pixels: CMYK JPEG, as collected.")


def test_pixels_may_differ_with_the_same_libraries() -> None:
    said = _decoder_sentence(found([2], served=OLD), KINDS)
    assert said == "Both have the same libraries. They read 1 of 4 files to other pixels: gray JPEG."
