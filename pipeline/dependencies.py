"""Which files and which sections of `params.yaml` a stage uses, read from its source, and `dvc.yaml` brought in line.

`python -m pipeline.dependencies` prints what is missing or too much in both `dvc.yaml`; `--write` mends the module lines.
The contract test calls `differences`. Reads source only; imports nothing of the stages.

Does not cover: data files, which the end-to-end test watches while the stages run.
"""

from __future__ import annotations

import ast
import functools
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from visionloop import config

PACKAGES = {
    "visionloop": Path("src/visionloop"),
    "pipeline": Path("pipeline"),
    "serving": Path("serving"),
    "monitoring": Path("monitoring"),
}
# What a stage runs in another process, and therefore does not import.
OTHER_PROCESS = {"parity": ("serving.triton.classify", "serving.triton.classifier")}
STAGES = Path("pipeline/stages")
# The pipeline, and what runs when it is asked for.
FILES = ("dvc.yaml", "experiments/dvc.yaml")
# Sections that say where the work runs and never change a result.
UNDECLARED = {"compute"}


@dataclass(frozen=True)
class Difference:
    """What `dvc.yaml` declares of one stage against what the stage's source says."""

    stage: str
    missing_deps: tuple[str, ...]
    needless_deps: tuple[str, ...]
    missing_params: tuple[str, ...]
    needless_params: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.missing_deps or self.needless_deps or self.missing_params or self.needless_params)


def stage_modules(stage: str, root: Path = Path()) -> set[str]:
    """Every source file of the project that running the stage loads, as paths relative to `root`."""
    found: set[str] = set()
    waiting = [f"pipeline.stages.{stage}", *OTHER_PROCESS.get(stage, ())]
    while waiting:
        module = waiting.pop()
        for file, name in _files_of(module, root):
            if file in found:
                continue
            found.add(file)
            waiting.extend(_imports(root / file, name))
            waiting.extend(_chosen_by_name(root / file, name))
    return found


def stage_params(stage: str, root: Path = Path()) -> set[str]:
    """The sections that the stage's script asks of `load_section`."""
    tree = ast.parse((root / STAGES / f"{stage}.py").read_text(encoding="utf-8"))
    sections: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "load_section":
            argument = node.args[0]
            assert isinstance(argument, ast.Name), f"{stage}: load_section takes a class by name"
            sections.add(getattr(config, argument.id).section)
    return sections - UNDECLARED


def differences(root: Path = Path()) -> list[Difference]:
    """Compare each stage of the files `FILES` with its source; an empty list means that they agree."""
    stages: dict[str, Any] = {}
    for name in FILES:
        stages |= yaml.safe_load((root / name).read_text(encoding="utf-8"))["stages"]
    result = []
    for stage, entry in stages.items():
        body = entry.get("do", entry)
        declared = {dep for dep in body["deps"] if dep.endswith(".py")}
        used = stage_modules(stage, root)
        params, sections = _declared_params(entry), stage_params(stage, root)
        difference = Difference(
            stage,
            tuple(sorted(used - declared)),
            tuple(sorted(declared - used)),
            tuple(sorted(sections - params)),
            tuple(sorted(params - sections)),
        )
        if difference:
            result.append(difference)
    return result


def rewrite(root: Path = Path()) -> None:
    """Put each stage's source files into its `deps`, after the data files; comments and order of the rest stay."""
    for name in FILES:
        _rewrite(root / name, root)


def _rewrite(path: Path, root: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for stage in yaml.safe_load(text)["stages"]:
        block = re.search(rf"^  {stage}:\n(?:(?:   .*)?\n)*", text, re.M)
        assert block is not None
        deps = re.search(r"^( +)deps:\n((?:\1- .*\n)+)", block.group(), re.M)
        assert deps is not None
        indent = deps.group(1)
        data = [line for line in deps.group(2).splitlines() if not line.endswith(".py")]
        modules = sorted(stage_modules(stage, root), key=lambda file: (file != str(STAGES / f"{stage}.py"), file))
        lines = "".join(f"{line}\n" for line in data + [f"{indent}- {file}" for file in modules])
        new = block.group().replace(deps.group(), f"{indent}deps:\n{lines}")
        text = text.replace(block.group(), new)
    path.write_text(text, encoding="utf-8")


def _executed(node: ast.AST) -> Iterator[ast.AST]:
    """Every node below `node`, but for what stands under `if TYPE_CHECKING`, which no interpreter runs."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from _executed(child)


def _declared_params(entry: dict[str, Any]) -> set[str]:
    """The sections that a stage declares, whole or, over all items of its `foreach`, with every one of their keys."""
    declared = {
        name.replace("${item}", item).replace("${key}", item)  # the key where a `foreach` is a mapping
        for name in entry.get("do", entry).get("params", [])
        for item in entry.get("foreach", [""])
    }
    whole = {name for name in declared if "." not in name}
    for section in {name.partition(".")[0] for name in declared} - whole:
        kind = config.Params.model_fields[section].annotation
        assert isinstance(kind, type) and issubclass(kind, config.Section), f"{section} is no section"
        if {f"{section}.{key}" for key in kind.model_fields} <= declared:
            whole.add(section)
    return whole


@functools.cache
def _imports(file: Path, name: str) -> tuple[str, ...]:
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    names: list[str] = []
    for node in _executed(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.extend(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parts, base] if base else parts)
            names.append(base)
            names.extend(f"{base}.{alias.name}" for alias in node.names)  # a sub-module, or a name in the module
    return tuple(name for name in names if name.partition(".")[0] in PACKAGES)


@functools.cache
def _chosen_by_name(file: Path, name: str) -> tuple[str, ...]:
    """Every module of a package that imports its own modules by name, since any of them may be asked for."""
    if file.name != "__init__.py":
        return ()
    calls = (node.func for node in _executed(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.Call))
    if not any(isinstance(call, ast.Attribute) and call.attr == "import_module" for call in calls):
        return ()
    return tuple(f"{name}.{other.stem}" for other in sorted(file.parent.glob("*.py")) if other != file)


def _files_of(module: str, root: Path) -> list[tuple[str, str]]:
    """The module's file and the `__init__.py` of each package above it; nothing for a name that is no module."""
    top, *rest = module.split(".")
    files: list[tuple[str, str]] = []
    folder = PACKAGES[top]
    for depth, part in enumerate([top, *rest]):
        if depth:
            if (root / folder / f"{part}.py").is_file():
                files.append((str(folder / f"{part}.py"), ".".join([top, *rest[:depth]])))
                break
            folder = folder / part
        if not (root / folder).is_dir():
            break
        if (root / folder / "__init__.py").is_file():
            files.append((str(folder / "__init__.py"), ".".join([top, *rest[:depth]])))
    return files


def main() -> int:
    """Print the differences, or mend them with `--write`; exit code 1 when some are left."""
    if "--write" in sys.argv[1:]:
        rewrite()
    found = differences()
    for item in found:
        print(f"{item.stage}:")
        for title, values in (
            ("add to deps", item.missing_deps),
            ("remove from deps", item.needless_deps),
            ("add to params", item.missing_params),
            ("remove from params", item.needless_params),
        ):
            if values:
                print(f"  {title}: {', '.join(values)}")
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
