"""The stage `report` declares every file that it reads, and each picture on its page is a plot of DVC, too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tests.unit.report.runs import OWNER, PICTURES, origin, write_run
from visionloop.report.files import RunFiles
from visionloop.report.model_card import markdown
from visionloop.report.story import tell

STAGES: dict[str, Any] = yaml.safe_load((Path(__file__).parents[2] / "dvc.yaml").read_text())["stages"]


def declared(kind: str) -> set[str]:
    """The plots or outs of all stages, with families filled in."""
    found = set()
    for entry in STAGES.values():
        for one in entry.get("do", entry).get(kind, []):
            name = one if isinstance(one, str) else next(iter(one))
            found |= {name.replace("${item}", item).replace("${key}", item) for item in ("cnn", "vit")}
    return found


def test_every_file_that_the_report_reads_is_a_dep_of_its_stage(tmp_path: Path) -> None:
    write_run(tmp_path)
    (tmp_path / "reports/evaluate/cnn/classes.csv").write_text("label,recall\na,1\n")
    (tmp_path / "reports/evaluate/cnn/detail.json").write_text("{}")  # without it the table of classes is read
    files = RunFiles(tmp_path)
    tell(files, origin(files), "x")
    markdown(files, origin(files), OWNER)
    deps = set(STAGES["report"]["deps"])
    read = set(files.md5s) - {"dvc.lock"}
    assert len(read) > 60
    assert not {name for name in read if name not in deps and not any(name.startswith(f"{dep}/") for dep in deps)}


def test_dvc_plots_show_has_every_picture_of_the_page() -> None:
    assert set(PICTURES) <= declared("plots")
