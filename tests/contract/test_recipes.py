"""Each recipe is whole, allowed, and can be built; so is its small variant; its notes say what a reader wants to know."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from pipeline import recipes
from visionloop.config import Params, parse_params
from visionloop.models import check_buildable

ROOT = Path(__file__).parents[2]
NAMES = recipes.names(ROOT)


def variants(name: str) -> list[Params]:
    recipe = recipes.read(name, ROOT)
    return [parse_params(text) for text in (recipe.text, recipe.small) if text is not None]


def test_there_are_recipes_and_every_file_belongs_to_one() -> None:
    assert {"finetune-torchvision", "distill", "robust"} <= set(NAMES)
    known = {f"{name}{end}" for name in NAMES for end in (".yaml", ".small.yaml")} | {"README.md"}
    assert {file.name for file in (ROOT / "recipes").iterdir()} <= known


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_has_every_key_and_an_allowed_value(name: str) -> None:
    """A key that is new in params.yaml is named here; `python -m pipeline.recipes` puts it into all recipes."""
    assert variants(name)


@pytest.mark.parametrize("name", NAMES)
def test_the_networks_of_a_recipe_can_be_built(name: str) -> None:
    for params in variants(name):
        for family in (params.train.cnn, params.train.vit):
            check_buildable(family.architecture, (params.preprocess.height, params.preprocess.width), family.options)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_begins_with_its_notes(name: str) -> None:
    recipe = recipes.read(name, ROOT)
    assert list(recipe.notes) == list(recipes.NOTES)
    assert all(len(note) > 20 for note in recipe.notes.values())
    assert recipe.small is not None, "a recipe of hours needs a variant of minutes"
    commands = re.findall(r"`(?:visionloop|dvc|python|make)[^`]*`", recipe.notes["Command"])
    assert commands, "the note Command names no command"


@pytest.mark.parametrize("name", NAMES)
def test_a_small_variant_has_only_what_differs(name: str) -> None:
    recipe = recipes.read(name, ROOT)

    def leaves(tree: dict[str, object], path: tuple[str, ...] = ()) -> dict[tuple[str, ...], object]:
        found: dict[tuple[str, ...], object] = {}
        for key, value in tree.items():
            section = isinstance(value, dict) and key not in ("options", "space", "override")
            found |= leaves(value, (*path, key)) if section else {(*path, key): value}  # type: ignore[arg-type]
        return found

    whole = leaves(yaml.safe_load(recipe.text))
    for path, value in leaves(yaml.safe_load((ROOT / "recipes" / f"{name}.small.yaml").read_text())).items():
        assert whole.get(path, "absent") != value, f"{'.'.join(path)} is the same in the recipe"
