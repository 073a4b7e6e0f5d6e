"""A recipe takes the place of params.yaml, whole or not at all, and nothing that a person wrote is lost unasked."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from pipeline import recipes
from pipeline.recipes import KEPT, apply, complete, names, read
from visionloop.config import load_params
from visionloop.errors import BlockedError, ConfigError

ROOT = Path(__file__).parents[3]
HEAD = "# What: a test\n#   of two lines\n# Command: `visionloop run`\n\n"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A repository with params.yaml and two recipes, all committed."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    text = (tmp_path / "params.yaml").read_text()
    (tmp_path / "recipes").mkdir()
    for name, seed in (("first", 7), ("second", 8)):
        (tmp_path / "recipes" / f"{name}.yaml").write_text(
            HEAD + text.replace("train:\n  seed: 0", f"train:\n  seed: {seed}")
        )
    (tmp_path / "recipes" / "first.small.yaml").write_text("# for a look\ntrain: {epochs: 2, cnn: {options: {width: 8}}}\n")
    for command in (
        ["init", "-q"],
        ["add", "-A"],
        ["-c", "user.name=t", "-c", "user.email=t@t.invalid", "commit", "-qm", "s"],
    ):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    return tmp_path


def seed(project: Path) -> int:
    return load_params(project / "params.yaml").train.seed


def test_a_recipe_and_its_small_variant_are_applied(project: Path) -> None:
    assert names(project) == ["first", "second"]
    assert read("first", project).notes == {"What": "a test of two lines", "Command": "`visionloop run`"}
    assert apply("first", root=project) == ["params.yaml is the recipe first now."]
    assert (project / "params.yaml").read_text() == (project / "recipes/first.yaml").read_text()
    assert apply("first", small=True, root=project) == ["params.yaml is the recipe first, small variant, now."]
    train = load_params(project / "params.yaml").train
    assert (train.seed, train.epochs, train.cnn.options["width"], train.cnn.options["stages"]) == (7, 2, 8, 3)
    text = (project / "params.yaml").read_text()
    assert "  epochs: 2                   # small variant; in full 30\n" in text
    assert text.startswith(
        "# The small variant: recipes/first.yaml with the values of recipes/first.small.yaml.\n# What: a test\n"
    )


def test_one_recipe_follows_another_without_a_commit(project: Path) -> None:
    for small, name in ((False, "first"), (True, "first"), (False, "second")):
        apply(name, small=small, root=project)
    assert seed(project) == 8
    assert not (project / KEPT).exists()


def test_changes_that_git_has_not_are_not_overwritten_unless_forced(project: Path) -> None:
    path = project / "params.yaml"
    own = path.read_text().replace("train:\n  seed: 0", "train:\n  seed: 99")
    path.write_text(own)
    with pytest.raises(BlockedError, match=r"params\.yaml has changes that git has not; commit them"):
        apply("first", root=project)
    assert path.read_text() == own
    said = apply("first", force=True, root=project)
    assert said[1] == f"The params.yaml of before is kept as {KEPT}."
    assert (project / KEPT).read_text() == own
    assert seed(project) == 7


def test_without_a_repository_only_force_overwrites(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(project / ".git")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(project.parent))
    with pytest.raises(BlockedError):
        apply("first", root=project)


def test_refusals_leave_params_yaml_as_it_is(project: Path) -> None:
    before = (project / "params.yaml").read_bytes()
    with pytest.raises(ConfigError, match="There is no recipe 'frist' in recipes; did you mean first"):
        apply("frist", root=project)
    with pytest.raises(ConfigError, match=r"There is no recipe '\.\./params' in recipes"):
        apply("../params", root=project)
    with pytest.raises(ConfigError, match="The recipe second has no small variant"):
        apply("second", small=True, root=project)
    (project / "recipes/first.small.yaml").write_text("train: {epoch: 2}\n")
    with pytest.raises(
        ConfigError, match=r"first\.small\.yaml, laid over .*unknown key 'train\.epoch'; did you mean 'epochs'"
    ):
        apply("first", small=True, root=project)
    assert (project / "params.yaml").read_bytes() == before


def test_a_missing_key_is_named_and_put_in(project: Path) -> None:
    path = project / "recipes" / "second.yaml"
    whole = path.read_text()
    path.write_text("".join(line for line in whole.splitlines(keepends=True) if not line.startswith("  momentum: ")))
    with pytest.raises(ConfigError, match=r"second\.yaml: 'train\.momentum' is missing; add it\."):
        read("second", project)
    assert complete(project) == ["second"]
    assert path.read_text() == whole
    assert complete(project) == []
    assert recipes.read("second", project).text == whole
