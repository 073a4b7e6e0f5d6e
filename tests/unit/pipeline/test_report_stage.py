"""The stage `report` where nothing has run, and where there is neither git nor dvc.lock."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipeline.stages import report

ROOT = Path(__file__).parents[3]


def test_a_bare_folder_gets_a_page_and_a_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    report.main()
    page, card = (tmp_path / "reports" / name for name in ("report.html", "MODEL_CARD.md"))
    text = page.read_text(encoding="utf-8")
    assert "The commit of the code is not known: no git repository was found." in text
    assert "there is no dvc.lock" in text
    assert '<th scope="row">torch</th><td>2.' in text  # what is installed is known all the same
    assert "no model is shipped yet" in card.read_text(encoding="utf-8")
    assert "without Data, Splits, Augmentation, Training" in capsys.readouterr().out
