"""Values put into the text of a params file, with everything else, comments included, left as people wrote it.

Does not cover: whether the result is allowed; `visionloop.config.parse_params` says that.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import YAMLError

from visionloop.errors import ConfigError

_COMMENT_COLUMN = 30  # where params.yaml has its reasons


def with_values(text: str, changes: Mapping[str, Any], note: str = "") -> str:
    """`text` with the mapping `changes` laid over it, section by section; a mapping meets a mapping, all else,
    an empty mapping too, replaces.

    `note` replaces the comment beside a changed value, which was said of another one; "{old}" in it is the old value.

    >>> with_values("train:\\n  epochs: 30  # enough\\n", {"train": {"epochs": 3}}, "small, else {old}")
    'train:\\n  epochs: 3                   # small, else 30\\n'

    Raises:
        ConfigError: the text is no YAML.
    """
    yaml = _yaml()
    try:
        tree = yaml.load(text)
    except YAMLError as error:
        raise ConfigError(f"This is no YAML: {str(error).splitlines()[0]}.") from None
    _lay_over(tree, changes, note)
    out = io.StringIO()
    yaml.dump(tree, out)
    return out.getvalue()


def with_missing(text: str, model: str, sections: type[BaseModel]) -> str:
    """`text` with every key of `model` that it lacks, as `model` has it with its comment, after the key that stands before.

    `sections` is what both are forms of; what is no section of it (free options) is left alone.
    """
    while path := _first_missing(_yaml().load(text), wanted := _yaml().load(model), sections):
        *parents, key = path
        for parent in parents:
            wanted = wanted[parent]
        before = list(wanted)[: list(wanted).index(key)]
        start, end = _block(model, path)
        lines = text.splitlines(keepends=True)
        place = 0
        if before:
            place = _block(text, [*parents, before[-1]])[1]
        elif parents:
            place = _block(text, parents)[0] + 1
        lines[place:place] = model.splitlines(keepends=True)[start:end]
        text = "".join(lines)
    return text


def read_tree(text: str, name: str) -> dict[str, Any]:
    """The plain values of a YAML text that holds a mapping; `name` stands in the message.

    Raises:
        ConfigError: it is something else.
    """
    try:
        tree = YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        raise ConfigError(f"{name} is no YAML: {str(error).splitlines()[0]}.") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{name} is not a mapping of sections.")
    return tree


def _yaml() -> YAML:
    yaml = YAML()
    yaml.width = 4096  # never break a line that a person did not break
    yaml.preserve_quotes = True
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.representer.add_representer(
        type(None), lambda representer, _: representer.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    return yaml


def _first_missing(tree: CommentedMap, wanted: CommentedMap, sections: type[BaseModel]) -> list[str]:
    """The path of the first key of `wanted` that `tree` lacks; none when it has all."""
    for key in wanted:
        if key not in tree:
            return [key]
        field = sections.model_fields.get(key)
        kind = field.annotation if field else None
        if (
            isinstance(kind, type)
            and issubclass(kind, BaseModel)
            and (below := _first_missing(tree[key], wanted[key], kind))
        ):
            return [key, *below]
    return []


def _block(text: str, path: Sequence[str]) -> tuple[int, int]:
    """The lines that a key and what is below it take: from the first, to before the second; comments after it not."""
    tree = _yaml().load(text)
    for part in path[:-1]:
        tree = tree[part]
    start, column = tree.lc.key(path[-1])
    lines = text.splitlines()
    end = start + 1
    for number in range(start + 1, len(lines)):
        line = lines[number]
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if len(line) - len(line.lstrip()) <= column:
            break
        end = number + 1
    return start, end


def _lay_over(tree: CommentedMap, changes: Mapping[str, Any], note: str) -> None:
    for key, value in changes.items():
        known = tree.get(key)
        if isinstance(value, Mapping) and value and isinstance(known, CommentedMap) and known:
            _lay_over(known, value, note)
        elif key not in tree or known != value:
            tree[key] = _flow(value)
            if note and not isinstance(value, Mapping) and not tree.fa.flow_style():
                tree.ca.items.pop(key, None)
                tree.yaml_add_eol_comment(note.format(old=_shown(known)), key, column=_COMMENT_COLUMN)


def _flow(value: Any) -> Any:
    """Short lists and mappings on one line, as params.yaml has them."""
    if isinstance(value, Mapping):
        made = CommentedMap({key: _flow(one) for key, one in value.items()})
        made.fa.set_flow_style()
        return made
    if isinstance(value, list | tuple):
        listed = CommentedSeq([_flow(one) for one in value])
        listed.fa.set_flow_style()
        return listed
    return value


def _shown(value: Any) -> str:
    out = io.StringIO()
    yaml = _yaml()
    yaml.dump({"value": value}, out)
    return out.getvalue().removeprefix("value: ").strip()
