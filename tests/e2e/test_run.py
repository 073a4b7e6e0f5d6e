"""The main job on a road that was walked: it serves, judges and sums up once, and says so when nothing changed."""

from __future__ import annotations

import json
import time

from pipeline import repro
from tests.e2e.project import Project


def test_the_main_job_sums_up_and_a_second_one_changes_nothing(own_road: Project) -> None:
    first = own_road.cli("run", timeout=300)
    assert f"0 stages ran, {len(repro.stage_names(own_road.root))} were up to date" in first.stdout
    summary = json.loads((own_road.root / "var/run-summary.json").read_text())
    titles = [table["title"] for table in summary["tables"]]
    assert titles[0].startswith("CNN against ViT, ")
    assert titles[1].startswith("FP32 ")  # against INT8, in the runtime that was faster on this machine
    assert titles[2:4] == ["Triton endpoint", "What the endpoint answers"]
    answers = summary["tables"][3]["rows"]
    assert [row[0] for row in answers] == ["http"] * 3 + ["grpc"] * 3
    assert [row[1:] for row in answers[:3]] == [row[1:] for row in answers[3:]]  # both protocols, one answer
    quiet, shifted = summary["tables"][4]["rows"]
    assert quiet[:2] == ["the reference's own images", "wait"]
    assert shifted[0] == "the same, blur 3"
    assert shifted[1] in ("alert", "retrain")
    pages = [page.split(":")[0] for page in summary["pages"] if page.startswith("var/demo/drift")]
    assert [(own_road.root / page).stat().st_size > 100_000 for page in pages] == [True, True]
    assert not (own_road.root / "var/store.db").exists()  # the demonstration leaves the real store alone

    begin = time.monotonic()
    second = own_road.cli("run", timeout=120)
    assert time.monotonic() - begin < 60
    assert "Nothing changed since the last run." in second.stdout
    assert "What the endpoint answers" in second.stdout


def test_status_says_what_is_stale_and_what_does_not_run(own_road: Project) -> None:
    own_road.set_param(r"^  mistake_images: .*$", "  mistake_images: 3")
    status = json.loads(own_road.cli("status", "--json").stdout)
    assert status["stale_stages"] == ["evaluate@cnn", "evaluate@vit"]
    assert status["endpoints"] is None
    assert status["champion"]["champion"] == 1
    assert status["last_decision"] is None
    text = own_road.cli("status").stdout
    assert "stale: evaluate@cnn, evaluate@vit" in text
    assert "`visionloop up` starts it" in text
