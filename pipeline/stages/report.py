"""Stage `report`: the whole run as one page and as a model card, from the files that the other stages wrote."""

from __future__ import annotations

import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pipeline.stages import run_stage
from visionloop.config import ReportParams, load_section
from visionloop.files import write_text
from visionloop.paths import DVC_LOCK, MODEL_CARD, REPORT_PAGE
from visionloop.report import model_card, page
from visionloop.report.files import RunFiles
from visionloop.report.release_sections import Origin
from visionloop.report.story import tell

LIBRARIES = ("torch", "torchvision", "onnx", "onnxruntime", "numpy", "scikit-learn", "pillow", "dvc", "prefect", "evidently")
# What the code is; dvc.lock and reports change with every run.
CODE = ("src", "pipeline", "serving", "monitoring", "dvc.yaml", "params.yaml")


def main() -> None:
    """Read the stages' reports, cards and pictures, dvc.lock and the commit; write reports/report.html and the model card.

    What is missing or damaged becomes a sentence on the page.
    """
    owner = load_section(ReportParams)
    files = RunFiles(Path())
    # dvc.lock is no dependency, since it changes with each stage: what it says is as of now.
    origin = Origin(files.yaml(DVC_LOCK), *_commit(), _versions())
    report = tell(files, origin, owner.model_name)
    write_text(REPORT_PAGE, page.render(report))
    write_text(MODEL_CARD, model_card.markdown(RunFiles(Path()), origin, owner))
    for warning in report.warnings:
        print(warning)
    lacking = [section.title for section in report.sections if section.is_missing]
    said = f"; without {', '.join(lacking)}, whose stages have not run" if lacking else ""
    print(f"{REPORT_PAGE} and {MODEL_CARD}: {' '.join(report.sentences)} {len(report.sections)} sections{said}")


def _commit() -> tuple[str, bool]:
    """The commit of the code and whether the code has changes beyond it; "" where git does not know."""
    head, status = (_git("rev-parse", "HEAD"), _git("status", "--porcelain", "--", *CODE))
    return head or "", bool(status)


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:  # git is not installed
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    raise SystemExit(run_stage(main))
