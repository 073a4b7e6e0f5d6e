"""The parts of README.md that are not written by hand: the tree, from the modules' first sentences, and the figures.

`python -m pipeline.readme` writes both; `--check` only says whether the tree is up to date. The figures change with each
measurement, so nothing checks them.

Does not cover: what stands around the markers.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

from pipeline import summary
from visionloop.errors import ArtifactError, VisionloopError
from visionloop.files import write_text

README = Path("README.md")
DIGITS = Path("benchmarks/results/digits_accuracy.json")
# Files and folders in the order in which data flow; what is not named follows by name.
TOP = {
    "dvc.yaml": "The graph of stages, in reading order.",
    "params.yaml": "One section per stage, the reason beside each number.",
    "prefect.yaml": "The deployments: weekly retraining, hourly monitor.",
    "Makefile": "The verbs; `make` alone prints them.",
    "pyproject.toml": "Metadata and the settings of every tool.",
    "Dockerfile": "Images `pipeline` and `triton`.",
    "compose.yaml": "The live system in containers.",
}
FOLDERS = (
    "pipeline", "pipeline/stages", "src/visionloop", "src/visionloop/data", "src/visionloop/models",
    "src/visionloop/training", "src/visionloop/evaluation", "src/visionloop/compression", "serving", "serving/triton",
    "monitoring",
)  # fmt: skip
ORDER = (
    "cli", "run", "doctor", "repro", "dependencies", "flows", "orchestrator", "supervisor", "process", "endpoints",
    "traffic", "watching", "feedback", "feedback_cli", "summary", "readme",
    "collect", "clean", "split", "augment", "train", "evaluate", "select", "export", "quantize", "deploy", "reference",
    "config", "paths", "errors", "records", "files", "tables", "card", "preprocess", "features", "progress",
    "sources", "shards", "thumbs", "fingerprints", "measures", "decisions", "duplicates", "embedding", "outliers",
    "label_issues", "cleaning", "cleaning_page", "splitting", "policy", "balancing",
    "packing", "augmentation", "operations", "automatic", "mixing", "extremes", "range_check", "contact_sheet",
    "repository", "server", "guard", "trial", "client", "spool", "images", "store", "labels", "classify", "classifier",
    "window", "frame", "drift", "decision", "watch", "dashboard", "workspace", "alerts", "simulator",
)  # fmt: skip
REST = {
    "benchmarks": "One script per claim, side by side with what a user would pick instead.",
    "tests": "unit (mirrors the source), contract, behaviour, golden, e2e.",
    "docs": "Architecture, decisions, how-to pages, troubleshooting.",
}


def tree(root: Path = Path()) -> str:
    """One line per file: path, and what it is."""
    lines = list(TOP.items())
    tracked = _tracked(root)
    for folder in sorted({str(Path(name).parent) for name in tracked}, key=_folder_rank):
        here = [name for name in tracked if str(Path(name).parent) == folder]
        lines += [(name, _first_sentence(root / name)) for name in sorted(here, key=_file_rank)]
    lines += list(REST.items())
    width = max(len(path) for path, _ in lines) + 2
    return "".join(f"{path:{width}}{words}\n" for path, words in lines)


def with_tree(text: str, root: Path = Path()) -> str:
    """README's text with the tree as it should be."""
    return _between(text, "tree", f"```\n{tree(root)}```")


def with_figures(text: str, root: Path = Path()) -> str:
    """README's text with the figures of the last run of the pipeline.

    Raises:
        ArtifactError: the pipeline did not run yet.
    """
    tables = [*summary.tables(root), digits_over_seeds(root)]
    return _between(text, "figures", "\n".join(table.markdown() for table in tables).rstrip())


def digits_over_seeds(root: Path = Path()) -> summary.Table:
    """What `benchmarks/digits_accuracy.py` measured: one test side of 180 images says little, so over splits and seeds.

    Raises:
        ArtifactError: the benchmark did not run yet.
    """
    path = root / DIGITS
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}); run `python -m benchmarks.digits_accuracy`.") from error
    rows = found["rows"]
    splits, seeds = ({row[key] for row in rows} for key in ("split", "seed"))
    cells = tuple(
        (
            words,
            *(f"{100 * found['summary'][family][key]:.2f} %" for key in ("fp32_mean", "fp32_lowest", "int8_mean")),
            f"{found['summary'][family]['train_seconds']:.0f}",
        )
        for family, words in summary.FAMILIES.items()
    )
    heads = ("model", "mean test accuracy", "lowest run", "INT8, mean", "seconds to train, mean")
    title = f"Digits, {len(splits)} splits x {len(seeds)} seeds"
    return summary.Table(title, heads, cells, (f"On {found['machine']}; written by `{DIGITS.stem}.py` in `benchmarks/`.",))


def _between(text: str, name: str, content: str) -> str:
    begin, end = f"<!-- {name}:begin -->\n", f"\n<!-- {name}:end -->"
    if begin not in text or end not in text:
        raise ArtifactError(f"{README} lacks the lines {begin.strip()} and {end.strip()}; restore it from git.")
    head, rest = text.split(begin, 1)
    return head + begin + content + end + rest.split(end, 1)[1]


def _tracked(root: Path) -> list[str]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"]
    names = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.split()
    tops = ("pipeline/", "src/", "serving/", "monitoring/")
    return [name for name in names if name.startswith(tops) and not name.endswith("__init__.py") and (root / name).exists()]


def _folder_rank(folder: str) -> tuple[int, str]:
    return (FOLDERS.index(folder) if folder in FOLDERS else len(FOLDERS), folder)


def _file_rank(name: str) -> tuple[int, str]:
    stem = Path(name).stem
    return (ORDER.index(stem) if stem in ORDER else len(ORDER), name)


def _first_sentence(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    words = " ".join(docstring.split("\n\n")[0].split())
    return re.split(r"(?<=[.?]) (?=[A-Z`(])", words)[0].rstrip(".") + "."


def main() -> int:
    """Write README.md, or with --check say whether its tree is up to date."""
    text = README.read_text(encoding="utf-8")
    try:
        if "--check" in sys.argv:
            if with_tree(text) == text:
                return 0
            print(f"{README}'s tree is not up to date; run `make docs`.", file=sys.stderr)
            return 1
        write_text(README, with_figures(with_tree(text)))
    except VisionloopError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(f"{README} is up to date.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
