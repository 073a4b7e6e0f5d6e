"""The page shows every reason with pictures, escapes what files are called, needs no network, and collects decisions."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.unit.data.conftest import Draw
from visionloop.config import CleanParams
from visionloop.data.cleaning import Judged, image_ids, judge, score, summary
from visionloop.data.cleaning_page import MAX_OF_CLUSTER, MAX_PICTURES, choose, pictures, render
from visionloop.data.decisions import Decision, read_decisions, resolve
from visionloop.data.measures import MeasureBatch, Measures
from visionloop.data.thumbs import Thumbs
from visionloop.preprocess import encode_png
from visionloop.records import ImageRow

Made = Callable[..., Judged]
SCRIPT = "<script>alert(1)</script>"


@pytest.fixture
def make(
    image_row: Callable[..., ImageRow], clean_params: CleanParams, tmp_path: Path
) -> Callable[[dict[str, bytes], tuple[Decision, ...]], Judged]:
    def run(files: dict[str, bytes], decisions: tuple[Decision, ...] = ()) -> Judged:
        rows = sorted((image_row(data, path) for path, data in files.items()), key=lambda row: row.path)
        measures = Measures.empty(len(rows))
        resolved = resolve(decisions, np.sort(image_ids(rows)), {row.label for row in rows}, 3, Path("decisions.csv"))
        with Thumbs(len(rows), tmp_path) as thumbs:
            measures.put(MeasureBatch(10**6)([(place, files[row.path]) for place, row in enumerate(rows)]), thumbs)
            return judge(rows, measures, score(rows, measures, thumbs, resolved, clean_params), clean_params)

    return run


def page_of(judged: Judged, images: dict[str, str] | None = None) -> str:
    return render(judged, summary(judged), choose(judged), images or {})


def flat(value: int) -> bytes:
    return encode_png(np.full((30, 30), value, np.uint8))


@pytest.fixture
def judged(make: Made, draw: Draw) -> Judged:
    files = {f"cat/{seed}.png": draw(seed) for seed in range(4)}
    files |= {"cat/0b.jpg": draw(0, kind="JPEG"), "cat/grey.png": flat(90), f'{SCRIPT}/"><b>x\n': b"x"}
    return make({**files, "dog/1.png": draw(20), "dog/2.png": draw(20)})


def test_page_tells_reasons_numbers_and_classes(judged: Judged) -> None:
    grey = next(row for row in judged if row.reason == "blank")
    page = page_of(judged, {grey.id: "data:image/png;base64,AAAA"})
    assert "<strong>9</strong>images" in page
    assert re.findall(r'<h2 id="(\w+)">', page) == ["unreadable", "exact_duplicate", "blank", "near_duplicate"]
    assert page.count("data:image/png;base64,AAAA") == 1
    assert "brightness\n90, contrast 0.0, sharpness 0,\nentropy 0.0, colourfulness 0" in page
    assert page.count('<span class="badge reject">rejected</span>') == 3
    assert page.count("<svg ") == 8


def test_names_are_escaped_and_nothing_is_fetched(judged: Judged) -> None:
    page = page_of(judged)
    assert page.count("<script") == 1  # the page's own
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert '"><b>x' not in page
    assert not re.search(r"https?:|//[a-z]|@import|<link|<iframe|url\(", page.replace("image/svg", ""))
    assert not re.search(r'(?:src|href)="(?!data:)', page)
    assert "default-src 'none'" in page


def test_page_without_remarks(make: Made, draw: Draw) -> None:
    assert "No remarks" in page_of(make({"cat/1.png": draw(1)}))


def test_duplicates_are_shown_beside_their_original(judged: Judged) -> None:
    shown = {
        section.reason: [[judged.images[index].path for index in group] for group in section.groups]
        for section in choose(judged)
    }
    assert shown["near_duplicate"] == [["cat/0.png", "cat/0b.jpg"]]
    assert shown["exact_duplicate"] == [["dog/1.png", "dog/2.png"]]
    assert shown["blank"] == [["cat/grey.png"]]


def test_no_more_than_sixty_of_a_reason_and_every_class_has_its_share(make: Made) -> None:
    files = {f"cat/{value}.png": flat(value) for value in range(200)}
    files |= {f"dog/{value}.png": flat(value) for value in range(200, 210)}
    judged = make(files)
    (section,) = (section for section in choose(judged) if section.reason == "blank")
    assert (section.count, len(section.positions)) == (210, MAX_PICTURES)
    assert sum(judged.images[index].label == "dog" for index in section.positions) == 10
    assert "60 are shown; all stand in data/clean.parquet." in page_of(judged)


def test_a_large_group_of_copies_is_cut(make: Made, draw: Draw) -> None:
    judged = make({f"cat/{number:02}.png": draw(1) for number in range(30)})
    (section,) = choose(judged)
    assert [len(group) for group in section.groups] == [MAX_OF_CLUSTER]


def test_what_people_decided_stands_first_and_is_decided_no_more(make: Made, draw: Draw) -> None:
    judged = make({"cat/1.png": draw(1), "cat/2.png": draw(2), "cat/3.png": flat(9)})
    row = judged[0]
    made = make(
        {"cat/1.png": draw(1), "cat/2.png": draw(2), "cat/3.png": flat(9)},
        (Decision(row.id, "drop", "", "<b>ann</b>", "=cmd()", 2), Decision("d" * 64, "drop", "", "ann", "", 3)),
    )
    page = page_of(made)
    assert re.findall(r'<h2 id="(\w+)">', page) == ["decision_drop", "blank"]
    assert "&lt;b&gt;ann&lt;/b&gt; drops it (=cmd())." in page
    assert "<strong>1</strong>decisions applied" in page
    assert "1 about absent images" in page
    figure = re.search(rf'<figure data-id="{row.id[:16]}".*?</figure>', page, re.DOTALL)
    assert figure and "<button" not in figure[0]


def test_pictures_are_small_and_broken_ones_have_none(draw: Draw, image_row: Callable[..., ImageRow]) -> None:
    data = {"a/small.png": draw(0, side=16), "a/large.jpg": draw(1, side=600, kind="JPEG"), "a/bad.jpg": b"x"}
    encoded = [(image_row(content, path), content) for path, content in data.items()]
    found = pictures(encoded, 10**6)
    assert [found.get(row.id, "")[:16] for row, _ in encoded] == ["data:image/png;b", "data:image/jpeg;", ""]
    assert len(found[encoded[1][0].id]) < 8000


CLICKS = """
<script>
const figure = (path) => [...document.querySelectorAll("figure[data-id]")].find((one) => one.textContent.includes(path));
const press = (path, text) => [...figure(path).querySelectorAll("button")].find((one) => one.textContent === text).click();
press("cat/grey.png", "keep");
press("cat/0b.jpg", "drop");
press("cat/0.png", "drop");
press("cat/0.png", "drop");
press("dog/1.png", "relabel");
const input = figure("dog/1.png").querySelector("input");
input.value = '=cmd(1,"x")';
input.dispatchEvent(new Event("input"));
find("who").value = "ann";
find("who").dispatchEvent(new Event("input"));
find("why").value = "a, b";
find("why").dispatchEvent(new Event("input"));
const rows = find("rows").value;
find("by-class").value = "cat";
find("by-class").dispatchEvent(new Event("change"));
const cats = find("shown").textContent;
find("by-reason").value = "blank";
find("by-reason").dispatchEvent(new Event("change"));
document.title = JSON.stringify([rows, cats, find("shown").textContent, find("copy").disabled, find("tray").hidden]);
</script>
"""


@pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium on this machine")
def test_a_browser_collects_rows_that_are_read_again(judged: Judged, tmp_path: Path) -> None:
    """Keep, drop, a drop taken back, and a relabel to a dangerous name, clicked in a real browser without a network."""
    path = tmp_path / "cleaning.html"
    path.write_text(page_of(judged).replace("</body>", CLICKS + "</body>"), encoding="utf-8")
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND",
               f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=2000", "--dump-dom",
               path.as_uri()]  # fmt: skip
    dom = subprocess.run(command, capture_output=True, timeout=90, check=True).stdout.decode()
    title = re.search(r"<title>(.*?)</title>", dom, re.DOTALL)
    assert title
    rows, cats, blank, copy_disabled, tray_hidden = json.loads(html.unescape(title[1]))
    decisions = tmp_path / "decisions.csv"
    decisions.write_text(f"id,decision,label,who,why\n{rows}", encoding="utf-8")
    ids = {row.path: row.id[:16] for row in judged}
    assert [(one.id, one.verb, one.label, one.who, one.why) for one in read_decisions(decisions)] == [
        (ids["cat/grey.png"], "keep", "", "ann", "a, b"),
        (ids["cat/0b.jpg"], "drop", "", "ann", "a, b"),
        (ids["dog/1.png"], "relabel", '=cmd(1,"x")', "ann", "a, b"),
    ]
    assert ',"\'=cmd(1,""x"")",' in rows  # a spreadsheet shows it and does not run it
    assert (cats, blank, copy_disabled, tray_hidden) == ("3 pictures", "1 picture", False, False)
