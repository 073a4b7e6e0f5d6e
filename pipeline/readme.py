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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline import summary
from visionloop.errors import ArtifactError, VisionloopError
from visionloop.files import write_text

README = Path("README.md")
RESULTS = Path("benchmarks/results")
SETS = {"cifar": "CIFAR-10", "clothing": "clothing photos"}  # what planted_faults.py was given
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
    "src/visionloop/training", "src/visionloop/evaluation", "src/visionloop/explanation", "src/visionloop/compression",
    "src/visionloop/report", "serving", "serving/triton", "monitoring",
)  # fmt: skip
ORDER = (
    "cli", "run", "doctor", "repro", "dependencies", "flows", "orchestrator", "supervisor", "process", "endpoints",
    "traffic", "watching", "feedback", "feedback_cli", "summary", "readme",
    "collect", "clean", "split", "augment", "train", "calibrate", "evaluate", "select", "export", "robustness", "quantize",
    "gate", "parity", "deploy", "reference", "report",
    "config", "paths", "errors", "records", "files", "tables", "card", "onnx_file", "preprocess", "features", "progress",
    "pages", "charts",
    "sources", "shards", "thumbs", "fingerprints", "measures", "decisions", "duplicates", "embedding", "outliers",
    "label_issues", "cleaning", "cleaning_page", "splitting", "policy", "balancing",
    "packing", "augmentation", "operations", "automatic", "mixing", "extremes", "range_check", "contact_sheet",
    "repository", "server", "guard", "trial", "pixels", "client", "spool", "images", "store", "labels", "classify",
    "classifier",
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
    tables = [
        *summary.tables(root), digits_over_seeds(root), trainings(root), feeding(root), planted_faults(root),
        beside_others(root), scale(root),
    ]  # fmt: skip
    return _between(text, "figures", "\n".join(table.markdown() for table in tables).rstrip())


def digits_over_seeds(root: Path = Path()) -> summary.Table:
    """What `benchmarks/digits_accuracy.py` measured: one test side of 180 images says little, so over splits and seeds.

    Raises:
        ArtifactError: the benchmark did not run yet.
    """
    found = _measured(root, "digits_accuracy")
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
    return summary.Table(title, heads, cells, (_source(found, "digits_accuracy"),))


def trainings(root: Path = Path()) -> summary.Table:
    """What `benchmarks/clothing_accuracy.py`, `cifar10_speed.py` and `cifar10_vit.py` measured.

    Raises:
        ArtifactError: a benchmark did not run yet.
    """
    photos, cifar = _measured(root, "clothing_accuracy"), _measured(root, "cifar10_speed")
    vit = _measured(root, "cifar10_vit")
    smaller = sum(row["height"] < vit["rows"][-1]["height"] for row in vit["rows"])
    cells = [
        (
            f"clothing photos from scratch, {words}",
            f"{100 * side['test_accuracy']:.1f} % ({' to '.join(f'{100 * end:.1f}' for end in side['interval_95'])})",
            f"{side['minutes']:.0f} min, {side['pflop']:.2f} PFLOP, {side['epochs']} epochs",
        )
        for words, side in (("recipe clothing", photos["ours"]), ("torchvision's ResNet-18 script", photos["usual"]))
    ]
    summed = cifar["summary"]
    cells.append(
        (
            f"CIFAR-10 as JPEG, recipe cifar10-speed, {summed['seeds']} seed{'s' if summed['seeds'] > 1 else ''}",
            f"{100 * summed['mean']:.1f} %",
            f"{summed['pflop']:.2f} PFLOP, {summed['times_anchor']:.2f} times airbench94's",
        )
    )
    cells.append(
        (
            "CIFAR-10 as JPEG, recipe cifar10-vit, 1 seed",
            f"{100 * vit['test_accuracy']:.1f} % ({' to '.join(f'{100 * end:.1f}' for end in vit['test_interval_95'])})",
            f"{vit['cpu_minutes'] / 2:.0f} min of two cores by CPU time ({vit['minutes']:.0f} by the clock), "
            f"{vit['pflop']:.2f} PFLOP, {vit['run']['epochs']} epochs, {smaller} of them on smaller images",
        )
    )
    curve = ", ".join(f"{100 * row['val_accuracy']:.0f} % after {row['cpu_seconds'] / 120:.0f}" for row in vit["rows"])
    reached = "reached" if summed["mean"] >= 0.94 else "not reached"
    reached_vit = "reached" if vit["test_accuracy"] >= 0.9 and vit["cpu_minutes"] <= 180 else "not reached"
    notes = (
        f"Photos: of {photos['compared_photos']} test images only ours names {photos['only_ours_right']} rightly, only the "
        f"other {photos['only_usual_right']}. torchvision's script has its defaults, which are meant for more epochs and "
        f"eight GPUs: a weak rival here. {_source(photos, 'clothing_accuracy')}",
        f"CIFAR-10: the goal of 94 % is {reached}. {_source(cifar['seeds'][-1], 'cifar10_speed')}",
        f"ViT: val images named rightly: {curve} minutes of two cores by CPU time. The goal of 90 % in 90 minutes is "
        f"{reached_vit}. {_source(vit, 'cifar10_vit')}",
    )
    return summary.Table("Longer trainings", ("what", "test accuracy", "effort"), tuple(cells), notes)


def feeding(root: Path = Path()) -> summary.Table:
    """What `benchmarks/feeding.py` measured: an epoch beside its steps alone, and beside ImageFolder with a DataLoader.

    Raises:
        ArtifactError: the benchmark did not run yet.
    """
    found = _measured(root, "feeding")
    cells = tuple(
        (
            name,
            row["execution"],
            f"{row['images_per_second']['fed']:.0f}",
            f"{row['fed_over_held']:.2f}",
            f"{row['times_usual']:.2f}",
        )
        for name, row in found["networks"].items()
    )
    heads = ("network", "steps run", "images a second", "epoch over its steps alone", "times the usual loop")
    notes = (
        "The goals are 1.05 for an epoch over its steps, and 1.4 (resnet18) and 3 (mobilenet_v3_small) times the usual "
        "loop. In fp32 both loops wait for the same products; where the processor has bf16, ours takes it.",
        _source(list(found["networks"].values())[-1], "feeding"),
    )
    return summary.Table(f"Training at {found['side']} pixels, batches of {found['batch']}", heads, cells, notes)


def planted_faults(root: Path = Path()) -> summary.Table:
    """What `benchmarks/planted_faults.py` measured: precision and recall of each kind, beside the best of the other tools.

    Raises:
        ArtifactError: the benchmark did not run yet.
    """
    found = {words: _measured(root, "planted_faults", name) for name, words in SETS.items()}
    cells = []
    for kind in dict.fromkeys(row["kind"] for one in found.values() for row in one["rows"]):
        cell = [kind.replace("_", " ")]
        for one in found.values():
            rows = [row for row in one["rows"] if row["kind"] == kind]
            ours = next(row for row in rows if row["tool"] == "visionloop")
            others = sorted((row for row in rows if row is not ours), key=lambda row: -row["f1"])
            cell += [str(ours["planted"]), _rates(ours)]
            cell.append(f"{_rates(others[0])} {others[0]['tool']}" if others else "none looks for it")
        cells.append(tuple(cell))
    heads = [head for words in SETS.values() for head in (f"{words}: planted", "visionloop", "best other tool")]
    notes = (
        "Precision / recall. cleanvision and imagededup with their defaults; cleanlab with a logistic regression on pixels. "
        "A natural fault of an untouched image counts as a false alarm. Our limits were chosen on these two sets with other "
        "draws of faults, so expect somewhat less on yours.",
        *(
            f"{words}: {one['files']:,} files, seed {one['seed']}. {_source(one, 'planted_faults')}"
            for words, one in found.items()
        ),
    )
    return summary.Table("Faults planted into real images, and found", ("kind", *heads), tuple(cells), notes)


def beside_others(root: Path = Path()) -> summary.Table:
    """What `benchmarks/cleaning_speed.py` and `loading.py` measured, as ratios of one run.

    Raises:
        ArtifactError: a benchmark did not run yet.
    """
    cleaning, loading = _measured(root, "cleaning_speed"), _measured(root, "loading")
    cells = [
        (
            "clean, whole stage without the two learnt searches",
            "cleanvision, default run",
            f"{cleaning['ratios']['clean_by_cleanvision']:.1f} x",
        ),
        ("clean, measuring alone", "bare decoding of the same JPEGs", f"{cleaning['ratios']['measure_by_decode']:.2f} x"),
        *(
            (f"training batches of {loading['side']} pixels", words, f"{loading['ratio'][name]:.0f} x")
            for name, words in (
                ("imagefolder", "ImageFolder + PIL, 2 workers"), ("webdataset", "webdataset, 2 workers"),
                ("litdata", "litdata, 2 workers"),
            )
        ),
    ]  # fmt: skip
    notes = (_source(cleaning, "cleaning_speed"), _source(loading, "loading"))
    return summary.Table("Images per second beside others, one run", ("what", "beside", "ratio"), tuple(cells), notes)


def scale(root: Path = Path()) -> summary.Table:
    """What `benchmarks/scale.py` measured: seconds and memory of the data stages by number of images.

    Raises:
        ArtifactError: the benchmark did not run yet.
    """
    found = _measured(root, "scale")
    stages = ("collect", "clean", "split", "augment")
    cells = tuple(
        (
            f"{run['images']:,}",
            *(f"{run['stages'][stage]['seconds']:.0f} s, {run['stages'][stage]['gb_rss']:.1f} GB" for stage in stages),
        )
        for run in found["runs"]
    )
    each = {stage: [f"{run['cpu_seconds_per_100k'][stage]:.0f}" for run in found["runs"]] for stage in stages}
    growth = (
        "CPU seconds for 100,000 images, which stay the same where time grows like the number: "
        + ", ".join(f"{stage} {' / '.join(values)}" for stage, values in each.items())
        + "."
    )
    notes = ("Memory is the largest sum over the stage's processes.", growth, _source(found["runs"][-1], "scale"))
    return summary.Table("Images of 32 x 32 pixels through the data stages", ("images", *stages), cells, notes)


def _measured(root: Path, script: str, name: str = "") -> dict[str, Any]:
    path = root / RESULTS / (f"{script}_{name}.json" if name else f"{script}.json")
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}); run `python -m benchmarks.{script}`.") from error
    return found


def _source(found: Mapping[str, Any], script: str) -> str:
    return f"On {found['machine']}; written by `{script}.py` in `benchmarks/`."


def _rates(row: Mapping[str, Any]) -> str:
    return f"{row['precision']:.2f} / {row['recall']:.2f}"


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
