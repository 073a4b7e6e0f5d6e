"""A policy says what it does, in words and one part at a time, and impossible params are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from visionloop.config import parse_params
from visionloop.data.augmentation import columns
from visionloop.data.extremes import extremes
from visionloop.data.policy import AugmentPolicy
from visionloop.errors import ConfigError

PARAMS = Path(__file__).parents[3] / "params.yaml"
EVERYTHING = AugmentPolicy(
    horizontal_flip=True, vertical_flip=True, crop_padding_pixels=2, resized_crop=0.5, rotation_degrees=20, scale=0.2,
    shear_degrees=10, automatic="augmix", brightness=0.3, contrast=0.3, saturation=0.3, hue=0.1, blur_pixels=1.5,
    erasing=0.5, mixup=0.2, cutmix=1.0,
)  # fmt: skip


def parsed(**changes: Any) -> AugmentPolicy:
    tree = yaml.safe_load(PARAMS.read_text(encoding="utf-8"))
    tree["augment"] |= changes
    return AugmentPolicy.from_params(parse_params(yaml.safe_dump(tree)).augment)


def test_the_section_of_params_is_the_policy() -> None:
    policy = parsed(automatic="trivialaugment", mixup=0.2, balance="sampler", balance_strength=0.5)
    assert (policy.automatic, policy.mixes, policy.balance, policy.balance_strength) == (
        "trivialaugment", ("mixup",), "sampler", 0.5,
    )  # fmt: skip
    assert "trivialaugment" in policy.changes


def test_nothing_on_is_the_identity_whatever_the_settings_of_what_is_off() -> None:
    off = AugmentPolicy(padding="reflect", randaugment_operations=3, balance="sampler", mixup=0.5, mixed_share=0)
    assert off.is_identity
    assert (off.changes, off.mixes, off.words()) == ((), (), "no augmentation")
    assert not AugmentPolicy(cutmix=1.0).is_identity


def test_each_part_alone_keeps_its_strength_and_nothing_else() -> None:
    for name in EVERYTHING.changes:
        alone = EVERYTHING.only(name)
        assert alone.changes == (name,)
        assert alone.mixes == ()
    assert EVERYTHING.only("cutmix").mixes == ("cutmix",)
    assert EVERYTHING.only("hue").hue == 0.1


def test_every_change_has_ends_that_pin_its_own_columns() -> None:
    found = extremes(EVERYTHING)
    assert {one.name.split("_")[0] if one.name.startswith("augmix") else one.name for one in found} == set(
        EVERYTHING.changes
    )
    for one in found:
        for end in one.ends:
            assert set(end) <= set(columns(one.policy))
            assert all(0 <= value < 1 for value in end.values())
    (turned,) = extremes(AugmentPolicy(horizontal_flip="alternating"))
    assert (turned.setting, turned.ends) == ("", ({"mirrored": 0},))


def test_words() -> None:
    policy = AugmentPolicy(horizontal_flip=True, rotation_degrees=12, automatic="randaugment", cutmix=1.0)
    assert policy.words() == "horizontal_flip, rotation_degrees 12, randaugment 2 x 9, cutmix 1, padding edge"
    assert AugmentPolicy(horizontal_flip="alternating").words() == "horizontal_flip alternating"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"automatic": "autoaugment"}, r"'augment\.automatic' is 'autoaugment'; it must be 'none', 'randaugment'"),
        ({"hue": 0.6}, r"'augment\.hue' is 0\.6; it must be at most 0\.5"),
        ({"resized_crop": -0.1}, r"'augment\.resized_crop' is -0\.1; it must be at least 0"),
        ({"randaugment_magnitude": 31}, r"'augment\.randaugment_magnitude' is 31; it must be at most 30"),
        ({"cutmx": 1}, r"unknown key 'augment\.cutmx'; did you mean '(augment\.)?cutmix'"),
    ],
)
def test_impossible_params_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parsed(**changes)


def test_variants_of_images_that_nothing_changes_are_refused() -> None:
    off = dict.fromkeys(("crop_padding_pixels", "rotation_degrees", "scale", "brightness", "contrast"), 0)
    with pytest.raises(ConfigError, match="balance is variants, but nothing here changes an image"):
        parsed(**off, balance="variants")
    assert parsed(**off, balance="variants", automatic="augmix").balance == "variants"
