"""docs/sources.md: each snippet is valid, each source has one, and the example of a new source works as it stands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import yaml

from visionloop.config import CollectParams
from visionloop.data import sources
from visionloop.data.sources.base import SkipReason
from visionloop.errors import ConfigError
from visionloop.preprocess import decode, encode_png

PAGE = (Path(__file__).parents[3] / "docs/sources.md").read_text(encoding="utf-8")
SNIPPETS = [
    yaml.safe_load(block)["collect"] for block in re.findall(r"(?m)^    collect:\n(?:     .*\n)+", PAGE)
]  # fmt: skip
DEFAULTS = {"feedback": False, "images_per_shard": 100, "max_skipped_share": 0.05}


def params(snippet: dict[str, object]) -> CollectParams:
    return CollectParams.model_validate({**DEFAULTS, **snippet})


def test_every_source_has_a_snippet_that_is_valid() -> None:
    named = [snippet for snippet in SNIPPETS if "source" in snippet]
    assert {snippet["source"] for snippet in named} == {*sources.source_names(), "grid"}
    for snippet in named:
        if snippet["source"] != "grid":
            sources.check_source(params(snippet))


def test_every_reason_is_explained() -> None:
    table = PAGE.partition("## What is passed over")[2].partition("## How many")[0]
    assert set(re.findall(r"`(\w+)`", "".join(re.findall(r"(?m)^\| (`.*?) \|", table)))) == {*get_args(SkipReason)}


def test_the_example_of_a_new_source_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = re.findall(r"(?s)```python\n(.*?)```", PAGE)
    (tmp_path / "more").mkdir()
    (tmp_path / "more/grid.py").write_text(example, encoding="utf-8")
    monkeypatch.setattr(sources, "__path__", [*sources.__path__, str(tmp_path / "more")])
    pixels = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    (tmp_path / "sheet.png").write_bytes(encode_png(pixels))
    (snippet,) = (one for one in SNIPPETS if one.get("source") == "grid")
    source = sources.open_source(params({**snippet, "path": str(tmp_path)}))
    images = list(source)
    assert (len(source), source.name) == (6, "grid")
    assert [(image.label, image.path) for image in images[2:4]] == [("row 0", "0/2.png"), ("row 1", "1/0.png")]
    assert np.array_equal(np.asarray(decode(images[4].data).image), pixels[16:, 16:32])


def test_an_unknown_source_and_an_unknown_option_are_answered_with_the_nearest() -> None:
    with pytest.raises(
        ConfigError, match=r"collect.source: there is no source 'huggingfaces'; did you mean 'huggingface'\?"
    ):
        sources.check_source(params({"source": "huggingfaces", "path": "x", "options": {}}))
    with pytest.raises(ConfigError, match=r"there is no source 'base'; known sources are archive, csv, digits, folder"):
        sources.check_source(params({"source": "base", "path": "x", "options": {}}))
    for name, options, sentence in (
        ("csv", {"fiel": "x"}, r"unknown key 'collect.options.fiel'; did you mean 'file'\?"),
        ("folder", {"deep": True}, r"unknown key 'collect.options.deep'; known keys are none\."),
        ("csv", {"delimiter": ",,"}, r"'collect.options.delimiter' is ',,'; "),
        ("torchvision", {}, r"'collect.options.dataset' is missing; add it"),
        ("torchvision", {"dataset": "MNIST", "download": "yes"}, r"'collect.options.download' is 'yes'; it must be true or"),
    ):
        with pytest.raises(ConfigError, match=rf"^params.yaml: {sentence}"):
            sources.check_source(params({"source": name, "path": "x", "options": options}))
