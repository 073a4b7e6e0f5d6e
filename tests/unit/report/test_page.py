"""The report page in a real browser: no network, no complaint, both schemes, a phone; and as text: nothing unescaped."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from tests.browser import chromium, needs_chromium
from tests.unit.report.runs import EVIL, FORMS, LONG, OWNER, PICTURES, origin, write_run
from visionloop.files import write_json
from visionloop.paths import REPORT_PAGE
from visionloop.report.blocks import Table
from visionloop.report.files import RunFiles
from visionloop.report.model_card import markdown
from visionloop.report.page import render
from visionloop.report.release_sections import compression
from visionloop.report.story import tell


def page_of(root: Path) -> str:
    files = RunFiles(root)
    return render(tell(files, origin(files), OWNER.model_name))


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    write_run(tmp_path / "run")
    return tmp_path / "run"


def test_the_result_stands_first_in_words(whole: Path) -> None:
    page = page_of(whole)
    lead = re.search(r'<p class="lead">(.*?)</p>', page, re.S)
    assert lead and lead[1] == (
        "The CNN answers 47 of 50 test images rightly: 94.00 %, 90 % interval 84.00 % to 98.00 %. It is shipped as INT8, "
        "whose test accuracy is 93.00 %. It is within the budgets of robustness. The gate lets it pass. It is version 2 of "
        "the endpoint."
    )


def test_every_section_is_there_with_its_pictures_and_tables(whole: Path) -> None:
    page = page_of(whole)
    assert re.findall(r'<section id="(\w+)"', page) == [
        "data", "splits", "augmentation", "training", "metrics", "confusion", "calibration", "mistakes", "explanation",
        "slices", "robustness", "compression", "parity", "gate", "deployment", "lineage",
    ]  # fmt: skip
    assert 'class="missing"' not in page
    assert page.count("<img ") == len(PICTURES)
    assert all(f"<code>{name}</code>" in page for name in PICTURES)
    assert page.count('<svg class="chart" viewBox="0 0 420') == 2
    for said in (
        "90.00",
        "0.900 (0.850 to 0.950)",
        "seed: 7",
        "data/split.parquet cccccccc",
        "commit 0123abc, with changes",
    ):
        assert said in page, said


def test_names_are_escaped_and_nothing_is_fetched(whole: Path) -> None:
    page = page_of(whole)
    assert "<script" not in page
    assert "&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt;" in page
    assert not re.search(r"https?:|@import|<link|<iframe|url\(", page)
    assert not re.search(r'(?:src|href)="(?!data:|#)', page)
    assert "default-src 'none'" in page and "script-src" not in page


def test_a_missing_stage_is_a_sentence_and_all_else_stands(whole: Path) -> None:
    for name in ("gate.json", "quantize.json", "evaluate/vit/metrics.json", "robustness/attacks.png"):
        (whole / "reports" / name).unlink()
    page = page_of(whole)
    assert "reports/gate.json is not there: the stage gate has not run, or was stopped. `dvc repro gate` writes it." in page
    assert "reports/evaluate/vit/metrics.json is not there: the stage evaluate@vit has not run" in page
    assert re.findall(r'<a href="#(\w+)" class="missing"', page) == ["compression", "gate"]
    assert "94.00 %" in page and "The gate" not in page.split("</header>")[0]


def test_nothing_at_all_is_a_page_too(tmp_path: Path) -> None:
    page = page_of(tmp_path)
    assert "No model is selected yet" in page
    assert page.count('class="missing"') > 16


BROKEN: list[Any] = ["{", "[]", '{"selected": 3}', '{"rules": [1]}', '{"by_class": [{"label": 1, "train": "x"}]}',
                     '{"per_class": [{}], "slices": [{}], "pairs": [{}], "metrics": [{}]}']  # fmt: skip


@pytest.mark.parametrize("content", BROKEN)
def test_damaged_files_are_told_and_never_end_the_report(whole: Path, content: str) -> None:
    for path in [*whole.rglob("*.json"), *whole.rglob("*.csv"), *whole.rglob("*.tsv")]:
        path.write_text(content)
    for path in whole.rglob("*.png"):
        path.write_bytes(b"no picture")
    page = page_of(whole)
    assert "reports/augmentation.png is no PNG; rebuild it with `dvc repro`." in page
    told = re.findall(r'<p class="warning">(.*?)</p>', page)
    assert len(told) == len(set(told))
    assert page.count("<section ") == 16


def test_long_tables_are_folded(whole: Path) -> None:
    rows = "".join(f"case {number},refused\n" for number in range(30))
    (whole / "reports/robustness").mkdir(exist_ok=True)
    (whole / "reports/robustness/malformed.csv").write_text(f"kind,outcome\n{rows}")
    assert "<summary>Malformed bytes and extreme images, 30 rows</summary>" in page_of(whole)


def test_a_form_beside_fp32_and_int8_has_the_accuracy_of_what_is_shipped(whole: Path) -> None:
    (whole / "reports/variants.csv").write_text(FORMS.replace("int8,1,", '"fp32, openvino",1,'))
    report = json.loads((whole / "reports/quantize.json").read_text())
    write_json(whole / "reports/quantize.json", {**report, "shipped": "fp32", "val_accuracy": 0.955})
    tables = {block.title: block for block in compression(RunFiles(whole)) if isinstance(block, Table)}
    torch, other = tables["Size, memory and accuracy"].rows
    assert [cell.strip(" %") for cell in torch[-3:]] == ["95.00", "94.00", ""]
    assert other[0] == "fp32, openvino"
    assert [cell.strip(" %") for cell in other[-3:]] == ["95.50", "93.00", "shipped"]


def locked(path: Path, root: Path) -> dict[str, str]:
    return {"path": str(path), "md5": hashlib.md5((root / path).read_bytes(), usedforsecurity=False).hexdigest()}


def test_results_of_an_earlier_run_are_named_and_are_no_result_of_this_one(whole: Path) -> None:
    """`evaluate` ran anew and the run was stopped: what lies behind it is still there, as a commit brought it."""
    metrics, select, quantize, gate, deploy = (
        Path(f"reports/{name}.json") for name in ("evaluate/cnn/metrics", "select", "quantize", "gate", "deploy")
    )
    old = {"path": str(metrics), "md5": "0" * 32}
    stages = {
        "evaluate@cnn": {"outs": [locked(metrics, whole)]},
        "select": {"deps": [locked(metrics, whole)], "outs": [locked(select, whole)]},
        "quantize": {"deps": [old], "outs": [locked(quantize, whole)]},
        # The gate blocked: it wrote its report, and DVC keeps the hash of the earlier one.
        "gate": {"deps": [locked(quantize, whole)], "outs": [{"path": str(gate), "md5": "1" * 32}]},
        "deploy": {"deps": [locked(quantize, whole)], "outs": [locked(deploy, whole)]},
        # The stage that writes this page: its new state is locked after it.
        "report": {"deps": [{"path": str(deploy), "md5": "2" * 32}], "outs": [{"path": str(REPORT_PAGE), "md5": "3" * 32}]},
    }
    (whole / "dvc.lock").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
    head = page_of(whole).split("</header>")[0]
    assert "Of an earlier run, since what they are made from has changed: quantize, deploy. `dvc repro` brings" in head
    assert "47 of 50 test images" in head and "The gate lets it pass." in head
    assert "INT8" not in head and "of the endpoint" not in head
    files = RunFiles(whole)
    card = markdown(files, origin(files), OWNER)
    assert "- Of an earlier run, since what they are made from has changed: quantize, deploy." in card
    assert "of the endpoint" not in card
    stages["quantize"]["deps"] = [locked(metrics, whole)]
    (whole / "dvc.lock").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
    assert "Of an earlier run" not in page_of(whole)


def test_files_of_another_run_than_the_locked_one_are_named(whole: Path) -> None:
    lock = "stages: {gate: {outs: [{path: reports/gate.json, md5: 00000000000000000000000000000000}]}}"
    (whole / "dvc.lock").write_text(lock)
    assert "Not of the run in dvc.lock, since their content differs: reports/gate.json." in page_of(whole)


def test_pictures_that_are_too_large_are_left_beside(whole: Path) -> None:
    path = whole / "reports/augmentation.png"
    path.write_bytes(path.read_bytes() + b"\0" * 1_600_000)
    page = page_of(whole)
    assert "reports/augmentation.png has 1.6 MB, too much for this page; open it beside." in page
    assert page.count("<img ") == len(PICTURES) - 1


LOOK = """
(() => {
  const root = document.documentElement, style = getComputedStyle(document.body);
  const ids = [...document.querySelectorAll("[id]")].map((one) => one.id);
  return {
    overflow: root.scrollWidth - innerWidth,
    paper: style.backgroundColor,
    unnamed: [...document.images].filter((image) => !image.alt || !image.naturalWidth).length,
    links: [...document.querySelectorAll("a")].filter((link) => !document.getElementById(link.hash.slice(1))).length,
    twice: ids.length - new Set(ids).size,
    headless: [...document.querySelectorAll("table")].filter((one) => !one.querySelector("th[scope=col]")).length,
    headings: [...document.querySelectorAll("h1,h2,h3")].map((one) => one.tagName),
    text: document.body.innerText,
  };
})()
"""
DARK = "rgb(20, 24, 30)"
LIGHT = "rgb(255, 255, 255)"


@needs_chromium
def test_a_browser_shows_it_on_a_desk_and_on_a_phone_in_light_and_dark(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(page_of(whole), encoding="utf-8")
    schemes: list[tuple[Literal["light", "dark"], str]] = [("light", LIGHT), ("dark", DARK)]
    with chromium(tmp_path) as browser:
        for width in (1200, 360):
            for scheme, colour in schemes:
                browser.open(path, width, scheme, is_phone=width < 500)
                seen = browser.evaluate(LOOK)
                assert seen["overflow"] <= 0, f"{width} pixels: the page scrolls sideways"
                assert seen["paper"] == colour
                assert (seen["unnamed"], seen["links"], seen["twice"], seen["headless"]) == (0, 0, 0, 0)
                assert seen["headings"] == ["H1", *["H2"] * 16]
                assert EVIL in seen["text"] and LONG in seen["text"]
                assert browser.complaints == []
                assert [url for url in browser.requests if not url.startswith(("data:", path.as_uri()))] == []
        for chosen, colour in (("light", LIGHT), ("dark", DARK), ("system", DARK)):  # the system is dark still
            browser.evaluate(f'document.getElementById("theme-{chosen}").click()')
            assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == colour
