"""Recipes: complete params files in `recipes/` that read like lab notes, listed and put in the place of params.yaml.

`<name>.yaml` is whole; `<name>.small.yaml` holds the keys alone in which a variant for minutes differs. The notes at the top
of a recipe say what it is, what to run and what to expect; recipes/README.md tells how one is written.

Does not cover: running what a recipe describes.
"""

from __future__ import annotations

import difflib
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from pipeline.params_text import read_tree, with_missing, with_values
from visionloop.config import Params, parse_params
from visionloop.errors import BlockedError, ConfigError
from visionloop.files import write_text
from visionloop.paths import PARAMS, RECIPES, VAR

NOTES = ("What", "Command", "Source", "Expected", "Small")
KEPT = VAR / "params-before-recipe.yaml"
_SMALL = ".small.yaml"
_NOTE = re.compile(r"^# (\w+): (.*)$")


@dataclass(frozen=True, slots=True)
class Recipe:
    """One recipe as it lies in `recipes/`."""

    name: str
    notes: dict[str, str]  # by the words of NOTES
    text: str  # of the complete file
    small: str | None  # the complete text of the small variant

    def variant(self, small: bool) -> str:
        """The text to apply.

        Raises:
            ConfigError: the small variant is asked for and there is none.
        """
        if not small:
            return self.text
        if self.small is None:
            raise ConfigError(f"The recipe {self.name} has no small variant; leave out --small.")
        return self.small


def names(root: Path = Path()) -> list[str]:
    """The recipes by name, sorted."""
    files = (root / RECIPES).glob("*.yaml")
    return sorted(file.name.removesuffix(".yaml") for file in files if not file.name.endswith(_SMALL))


def read(name: str, root: Path = Path()) -> Recipe:
    """Read a recipe and check it and its small variant against the params of this version.

    Raises:
        ConfigError: there is no such recipe, or it lacks a key or says something that is not allowed; the key is named.
    """
    known = names(root)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known) or 'none'}."
        raise ConfigError(f"There is no recipe {name!r} in {RECIPES}; {hint}")
    path = RECIPES / f"{name}.yaml"
    text = _text(root / path)
    parse_params(text, str(path))
    small_path = RECIPES / f"{name}{_SMALL}"
    small = None
    if (root / small_path).is_file():
        changes = read_tree(_text(root / small_path), str(small_path))
        head = f"# The small variant: {path} with the values of {small_path}.\n"
        small = head + with_values(text, changes, "small variant; in full {old}")
        parse_params(small, f"{small_path}, laid over {path}")
    return Recipe(name, _notes(text), text, small)


def apply(name: str, *, small: bool = False, force: bool = False, root: Path = Path()) -> list[str]:
    """Put a recipe in the place of params.yaml, whole or not at all, and say in sentences what was done.

    What git has can be taken back with `git checkout params.yaml`. A params.yaml with changes that git has not is left
    alone, unless it is a recipe itself; with `force` it is kept as `var/params-before-recipe.yaml`.

    Raises:
        ConfigError: see `read`.
        BlockedError: params.yaml has changes that would be lost.
    """
    recipe = read(name, root)
    text = recipe.variant(small)
    said = []
    old = _text(root / PARAMS)
    if old != text:
        if not _is_committed(root) and not _is_recipe(old, root):
            if not force:
                raise BlockedError(
                    f"{PARAMS} has changes that git has not; commit them, take them back with `git checkout {PARAMS}`, or "
                    f"overwrite them with --force, which keeps them as {KEPT}."
                )
            write_text(root / KEPT, old)
            said.append(f"The {PARAMS} of before is kept as {KEPT}.")
        write_text(root / PARAMS, text)
    return [f"{PARAMS} is the recipe {name}{', small variant,' if small else ''} now.", *said]


def complete(root: Path = Path()) -> list[str]:
    """Put the keys that recipes lack into them, as params.yaml has them; the names of those that were changed."""
    model = _text(root / PARAMS)
    changed = []
    for name in names(root):
        path = root / RECIPES / f"{name}.yaml"
        old = _text(path)
        if (new := with_missing(old, model, Params)) != old:
            write_text(path, new)
            changed.append(name)
    return changed


def _notes(text: str) -> dict[str, str]:
    """The comments at the top: "# Word: text", whose indented lines below go on with it."""
    found: dict[str, str] = {}
    word = ""
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        if (match := _NOTE.match(line)) and match[1] in NOTES:
            word = match[1]
            found[word] = match[2].strip()
        elif word and line.startswith("#  "):
            found[word] += f" {line[1:].strip()}"
        else:
            word = ""
    return found


def _is_committed(root: Path) -> bool:
    """Whether git holds params.yaml as it is; without a repository it holds nothing."""
    command = ["git", "status", "--porcelain", "--", str(PARAMS)]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # git is not installed
        return False
    return done.returncode == 0 and not done.stdout.strip()


def _is_recipe(text: str, root: Path) -> bool:
    """Whether the text is a recipe that was applied, from which nothing is lost."""
    for name in names(root):
        try:
            recipe = read(name, root)
        except ConfigError:
            continue  # another recipe's fault is said when that one is asked for
        if text in (recipe.text, recipe.small):
            return True
    return False


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8; save it as UTF-8.") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); restore it from git.") from error


if __name__ == "__main__":
    print(f"Completed: {', '.join(complete()) or 'none, all recipes have every key'}.")
