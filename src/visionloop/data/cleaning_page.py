"""`reports/cleaning.html`: what `clean` found, as one page that opens without a network and collects decisions.

An image stands under its gravest reason, the clearest cases first and every class in turn, `MAX_PICTURES` of a reason at the
most: 22 reasons then make about 6 MB, however many images there are. Duplicates stand beside their original.

Does not cover: writing `data/decisions.csv`. The page gives the rows; a person appends them and git keeps them.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from visionloop import pages
from visionloop.data.cleaning import DECIDED, FINDINGS, Judged, kept_by_class
from visionloop.errors import ImageError
from visionloop.preprocess import decode
from visionloop.records import CleanRow, ImageRow

MAX_PICTURES = 60
MAX_OF_CLUSTER = 8
MAX_CLASSES = 200
_SIDE = 96
_BARS = 40

EXPLANATIONS: Mapping[str, str] = {
    "decision_keep": "A person keeps them, whatever the machine finds.",
    "decision_drop": "A person drops them.",
    "decision_relabel": "A person gave them another label.",
    "unreadable": "The bytes cannot be decoded as an image.",
    "truncated": "The file ends before the picture does; most often a broken download or copy.",
    "empty": "The file has no bytes.",
    "unsupported_format": "An image of a format that is not read here; convert it to JPEG, PNG, WebP or BMP.",
    "too_large": "More pixels than clean.max_megapixels; refused before decoding.",
    "too_small": "A side shorter than clean.min_side_pixels.",
    "conflicting_labels": "The same bytes in two classes: one label must be wrong, so none is used. Relabel or drop it.",
    "exact_duplicate": "The same bytes as an image that is kept, which stands first.",
    "blank": "One colour all over, within clean.blank_contrast.",
    "suspect_label": "Models that never saw the image dispute its label, the surest of each class in turn. Some are rare.",
    "outlier": "Unlike all other images of the set, the farthest first.",
    "near_duplicate": "Looks like another image. Each row is one group of look-alikes, which the split keeps on one side.",
    "dark": "Hardly a pixel is bright, the darkest first.",
    "bright": "Hardly a pixel is dark, the brightest first.",
    "blurred": "Edges far less steep than this set's, the softest first.",
    "low_information": "Few gray levels, the fewest first.",
    "odd_size": "Far larger or smaller than this set's images.",
    "odd_aspect": "Far wider or higher than this set's images.",
    "animated": "Several frames; the first one is used.",
}
assert set(EXPLANATIONS) == {*FINDINGS, *DECIDED.values()}
_UNDECODED = ("unreadable", "truncated", "empty", "unsupported_format", "too_large")


@dataclass(frozen=True)
class Section:
    """One reason with the images that the page shows of it: positions in groups, single ones but for duplicates."""

    reason: str
    count: int
    groups: list[list[int]]

    @property
    def positions(self) -> list[int]:
        """All positions, group after group."""
        return [index for group in self.groups for index in group]


@dataclass(frozen=True)
class Card:
    """A row of the report with its picture, a data URI, or "" where there is none, and what may be decided about it."""

    row: CleanRow
    picture: str
    buttons: tuple[str, ...]


@dataclass(frozen=True)
class Histogram:
    """How one number is spread over the decoded images: bars of those kept, those rejected on top; 0 to 100 each."""

    title: str
    kept: str  # an SVG path
    rejected: str
    low: str
    median: str
    high: str


def choose(judged: Judged) -> list[Section]:
    """Which images the page shows, by reason, in the order of `EXPLANATIONS`."""
    scores = judged.scores
    remarked = np.union1d(np.flatnonzero(scores.findings), np.array(sorted(scores.decided), dtype=np.int64)).tolist()
    by_reason: dict[str, list[int]] = {}
    for index in remarked:
        if reason := judged.reason(index):
            by_reason.setdefault(reason, []).append(index)
    return [
        Section(reason, len(by_reason[reason]), _groups(judged, reason, by_reason[reason]))
        for reason in EXPLANATIONS
        if reason in by_reason
    ]


def pictures(encoded: Iterable[tuple[ImageRow, bytes]], max_pixels: int) -> dict[str, str]:
    """Small data URIs by image id; an image that cannot be decoded has none."""
    found: dict[str, str] = {}
    for row, data in encoded:
        try:
            image = decode(data, max_pixels=max_pixels).image
        except ImageError:
            continue
        image.thumbnail((_SIDE, _SIDE))
        buffer = io.BytesIO()
        # Tiny pictures are shown pixel by pixel; JPEG would smear them.
        kind, options = ("PNG", {}) if max(image.size) <= _SIDE // 3 else ("JPEG", {"quality": 80})
        image.save(buffer, kind, **options)
        found[row.id] = f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return found


def render(judged: Judged, numbers: Mapping[str, float], sections: Sequence[Section], images: Mapping[str, str]) -> str:
    """The page as HTML. Names and labels are escaped; `images` are data URIs by image id."""
    shown = [
        {
            "name": section.reason,
            "title": section.reason.replace("_", " "),
            "why": EXPLANATIONS[section.reason],
            "count": section.count,
            "rejected": section.reason == "decision_drop" or section.reason in judged.params.reject,
            "groups": [[_card(judged, index, section.reason, images) for index in group] for group in section.groups],
            "shown": sum(judged.reason(index) == section.reason for index in section.positions),
        }
        for section in sections
    ]
    return pages.template(_PAGE).render(
        numbers=numbers,
        notes=judged.scores.doubts.notes,
        sections=shown,
        classes=_classes(judged),
        labels=judged.scores.classes,
        histograms=_histograms(judged),
        most_classes=MAX_CLASSES,
    )


def _groups(judged: Judged, reason: str, positions: list[int]) -> list[list[int]]:
    ordered = _in_turn(judged, _clearest_first(judged, reason, positions))
    if reason not in ("near_duplicate", "exact_duplicate"):
        return [[index] for index in ordered[:MAX_PICTURES]]
    head_of = judged.scores.near.cluster if reason == "near_duplicate" else judged.scores.original
    members: dict[int, list[int]] = {}
    for index in ordered:
        members.setdefault(int(head_of[index]), []).append(index)
    groups: list[list[int]] = []
    room = MAX_PICTURES
    for head, found in members.items():
        group = [head, *sorted(found)][: min(MAX_OF_CLUSTER, room)]
        if len(group) < 2:
            break
        groups.append(group)
        room -= len(group)
    return groups


def _clearest_first(judged: Judged, reason: str, positions: list[int]) -> list[int]:
    m, s = judged.measures, judged.scores
    key: Mapping[str, npt.NDArray[np.generic]] = {
        "suspect_label": s.doubts.label_quality, "outlier": -s.doubts.outlier_score, "near_duplicate": s.near.error,
        "dark": m.brightness, "bright": -m.brightness, "blurred": s.blur, "low_information": m.entropy,
    }  # fmt: skip
    if reason not in key:
        return positions
    found = np.array(positions, dtype=np.int64)
    return [int(index) for index in found[np.argsort(key[reason][found], kind="stable")]]


def _in_turn(judged: Judged, positions: list[int]) -> list[int]:
    """One of each class, then the second of each: a filter by class then always shows something."""
    seen: dict[int, int] = {}
    turn = []
    for index in positions:
        label = int(judged.scores.label[index])
        turn.append(seen.get(label, 0))
        seen[label] = turn[-1] + 1
    return [positions[place] for place in np.argsort(turn, kind="stable").tolist()]


def _card(judged: Judged, index: int, reason: str, images: Mapping[str, str]) -> Card:
    row = judged[index]
    buttons: tuple[str, ...] = ("keep", "drop", "relabel")
    if row.decided_by or row.reason in _UNDECODED or (reason == "exact_duplicate" and row.reason == reason):
        buttons = ()  # a copy has the id of its original
    elif row.reason == "conflicting_labels":
        buttons = ("drop", "relabel")
    return Card(row, images.get(row.id, ""), buttons)


def _classes(judged: Judged) -> list[dict[str, object]]:
    kept = kept_by_class(judged)
    classes = judged.scores.classes
    every = dict(zip(classes, np.bincount(judged.scores.label, minlength=len(classes)).tolist(), strict=True))
    most = max(every.values(), default=1)
    return [
        {
            "label": label,
            "images": every[label],
            "kept": kept[label],
            "rejected": every[label] - kept[label],
            "kept_percent": 100 * kept[label] / most,
            "rejected_percent": 100 * (every[label] - kept[label]) / most,
        }
        for label in classes[:MAX_CLASSES]
    ]


def _histograms(judged: Judged) -> list[Histogram]:
    m = judged.measures
    decoded = m.width_pixels > 0
    if not decoded.any():
        return []
    wide, high = m.width_pixels.astype(np.float64), m.height_pixels.astype(np.float64)
    spread: list[tuple[str, npt.NDArray[np.float64], bool]] = [
        ("brightness, mean gray 0 to 255", m.brightness.astype(np.float64), False),
        ("contrast, standard deviation of gray", m.contrast.astype(np.float64), False),
        ("sharpness, variance of the Laplacian", m.sharpness.astype(np.float64), True),
        ("edges, deviations from the median", judged.scores.blur.astype(np.float64), False),
        ("entropy of gray, bits", m.entropy.astype(np.float64), False),
        ("colourfulness, 0 is gray", m.colourfulness.astype(np.float64), False),
        ("size, pixels a side", np.sqrt(wide * high), True),
        ("width by height", wide / np.maximum(high, 1), True),
    ]
    return [_histogram(title, values[decoded], judged.kept[decoded], log) for title, values, log in spread]


def _histogram(title: str, values: npt.NDArray[np.float64], kept: npt.NDArray[np.bool_], log: bool) -> Histogram:
    scaled = np.log(np.maximum(values, 1e-2)) if log else values
    low, high = float(scaled.min()), float(scaled.max())
    if high <= low:
        low, high = low - 0.5, high + 0.5
    stays, _ = np.histogram(scaled[kept], _BARS, (low, high))
    goes, _ = np.histogram(scaled[~kept], _BARS, (low, high))
    top = max(int((stays + goes).max()), 1)
    base = 100 * stays / top
    marks = [f"{mark:,.0f}" if abs(mark) >= 100 else f"{round(mark, 2):.3g}" for mark in np.quantile(values, (0, 0.5, 1))]
    return Histogram(title, _bars(np.zeros(_BARS), base), _bars(base, 100 * goes / top), *marks)


def _bars(base: npt.NDArray[np.float64], height: npt.NDArray[np.float64]) -> str:
    # A bar of one image among thousands is drawn two hundredths high, so that it can be seen.
    return "".join(
        f"M{5 * place} {100 - below:.1f}v{-max(tall, 2):.1f}h4v{max(tall, 2):.1f}z"
        for place, (below, tall) in enumerate(zip(base.tolist(), height.tolist(), strict=True))
        if tall > 0
    )


_PAGE = """{% extends "page.html" %}
{% block policy %}; script-src 'unsafe-inline'{% endblock %}
{% block title %}Cleaning: {{ numbers.kept }} of {{ numbers.images }} images kept{% endblock %}
{% block style %}
[hidden] { display: none !important; }
table { width: 100%; } th, td { padding: .25rem .4rem; }
th:first-child, td:first-child { text-align: left; overflow-wrap: anywhere; min-width: 7rem; }
td.bar { width: 40%; } .bar div { display: flex; height: .7rem; }
.bar i { background: var(--good); } .bar b { background: var(--bad); }
.spreads { display: grid; grid-template-columns: repeat(auto-fill, minmax(10.5rem, 1fr)); gap: .7rem; }
.spreads figure { padding: .6rem .8rem; } .spreads svg { display: block; width: 100%; height: 4.5rem; }
.spreads .kept { fill: var(--good); } .spreads .gone { fill: var(--bad); }
.marks { display: flex; justify-content: space-between; color: var(--soft); font-variant-numeric: tabular-nums; }
.badge { font-size: .8rem; font-weight: 500; padding: .1rem .5rem; border-radius: 1rem; color: var(--paper);
  background: var(--good); vertical-align: .1rem; } .badge.reject { background: var(--bad); }
.bars { position: sticky; top: 0; z-index: 2; background: var(--paper); border-bottom: 1px solid var(--line);
  margin: 1.6rem -1rem 0; padding: .5rem 1rem; display: flex; flex-wrap: wrap; gap: .4rem .8rem; align-items: center; }
.bars label { color: var(--soft); } .bars select { max-width: 14rem; }
.cards, .group { display: grid; grid-template-columns: repeat(auto-fill, minmax(10.5rem, 1fr)); gap: .7rem; }
.group { grid-column: 1 / -1; border-left: 3px solid var(--line); padding-left: .7rem; }
figure { font-size: .8rem; line-height: 1.35; border: 2px solid transparent; }
figure.decided { border-color: var(--accent); }
figure > img, figure .none { display: block; width: 96px; height: 96px; object-fit: contain; margin: 0 auto .4rem; }
figure img.tiny { image-rendering: pixelated; }
figure .none { display: grid; place-items: center; border: 1px dashed var(--line); color: var(--soft); }
figcaption span { color: var(--soft); display: block; }
figcaption span.said { color: var(--ink); }
.choice { display: flex; flex-wrap: wrap; gap: .3rem; margin-top: .4rem; }
button, select, input, textarea { font: inherit; color: var(--ink); background: var(--paper); border: 1px solid var(--line);
  border-radius: .35rem; padding: .15rem .5rem; max-width: 100%; }
button { cursor: pointer; min-height: 1.9rem; } button[aria-pressed=true] { background: var(--accent); color: var(--paper); }
.choice input { width: 100%; }
#tray { position: sticky; bottom: 0; z-index: 2; background: var(--card); border-top: 2px solid var(--accent);
  margin: 2rem -1rem 0; padding: .7rem 1rem; display: grid; gap: .5rem; }
#tray div { display: flex; flex-wrap: wrap; gap: .5rem; align-items: center; } #tray p { margin: 0; }
#tray textarea { width: 100%; height: 4.6rem; font: .78rem/1.4 ui-monospace, monospace; white-space: pre; }
{% endblock %}
{% block body %}
<h1>What cleaning found</h1>
<div class="tiles">
<div><strong>{{ "{:,}".format(numbers.images) }}</strong>images</div>
<div><strong>{{ "{:,}".format(numbers.kept) }}</strong>kept</div>
<div><strong>{{ "{:,}".format(numbers.rejected) }}</strong>rejected, {{ "%.1f" % (100 * numbers.rejected_share) }} %</div>
<div><strong>{{ numbers.classes }}</strong>classes</div>
<div><strong>{{ "{:,}".format(numbers.near_duplicate_clusters) }}</strong>groups of look-alikes</div>
{% if numbers.decisions_applied or numbers.decisions_without_effect or numbers.decisions_of_absent_images %}
<div><strong>{{ "{:,}".format(numbers.decisions_applied) }}</strong>decisions applied
{% if numbers.decisions_without_effect %}
<br>{{ numbers.decisions_without_effect }} without effect
{% endif %}
{% if numbers.decisions_of_absent_images %}
<br>{{ numbers.decisions_of_absent_images }} about absent images
{% endif %}
</div>
{% endif %}
</div>
{% for note in notes %}
<p>{{ note }}</p>
{% endfor %}

<h2>Classes</h2>
{% if labels|length > most_classes %}
<p>The first {{ most_classes }} of {{ labels|length }}.</p>
{% endif %}
<table>
<tr><th>class</th><th>images</th><th>kept</th><th>rejected</th><th></th></tr>
{% for one in classes %}
<tr><td>{{ one.label }}</td><td>{{ one.images }}</td><td>{{ one.kept }}</td><td>{{ one.rejected }}</td>
<td class="bar"><div><i style="width:{{ "%.2f" % one.kept_percent }}%"></i>
<b style="width:{{ "%.2f" % one.rejected_percent }}%"></b></div></td></tr>
{% endfor %}
</table>

{% if histograms %}
<h2>The images in numbers</h2>
<p>Each bar counts images, those kept below and those rejected on top; below it the least, the median and the most.</p>
<div class="spreads">
{% for one in histograms %}
<figure><figcaption>{{ one.title }}</figcaption>
<svg viewBox="0 0 200 100" preserveAspectRatio="none" role="img"
 aria-label="{{ one.title }}: {{ one.low }} to {{ one.high }}">
<path class="kept" d="{{ one.kept }}"/><path class="gone" d="{{ one.rejected }}"/></svg>
<div class="marks"><span>{{ one.low }}</span><span>{{ one.median }}</span><span>{{ one.high }}</span></div></figure>
{% endfor %}
</div>
{% endif %}

{% if not sections %}
<h2>No remarks</h2>
<p>Every image can be used, and none resembles another.</p>
{% else %}
<div class="bars">
<label>Class <select id="by-class"><option value="">all</option>
{% for label in labels %}<option>{{ label }}</option>{% endfor %}</select></label>
<label>Reason <select id="by-reason"><option value="">all</option>
{% for section in sections %}<option value="{{ section.name }}">{{ section.title }}, {{ section.count }}</option>
{% endfor %}</select></label>
<span id="shown"></span>
</div>
{% endif %}
{% for section in sections %}
<section data-reason="{{ section.name }}">
<h2 id="{{ section.name }}">{{ section.title }}, {{ "{:,}".format(section.count) }}
<span class="badge{{ " reject" if section.rejected }}">{{ "rejected" if section.rejected else "kept" }}</span></h2>
<p>{{ section.why }}{% if section.shown < section.count %}
 {{ section.shown }} are shown; all stand in data/clean.parquet.{% endif %}</p>
<div class="cards">
{% for group in section.groups %}
{% if group|length > 1 %}<div class="group">{% endif %}
{% for card in group %}
<figure data-id="{{ card.row.id[:16] }}" data-label="{{ card.row.label }}" data-given="{{ card.row.given_label }}">
{% if card.picture %}
<img src="{{ card.picture }}" alt="{{ card.row.label }}"{% if card.row.width_pixels <= 32 %} class="tiny"{% endif %}>
{% else %}
<div class="none">no picture</div>
{% endif %}
<figcaption><strong>{{ card.row.label }}</strong> {{ card.row.path }}
{% if card.row.detail %}<span class="said">{{ card.row.detail }}</span>{% endif %}
{% if card.row.width_pixels %}
<span>{{ card.row.width_pixels }} x {{ card.row.height_pixels }} {{ card.row.format }} {{ card.row.mode }}, brightness
{{ "%.0f" % card.row.brightness }}, contrast {{ "%.1f" % card.row.contrast }}, sharpness {{ "%.0f" % card.row.sharpness }},
entropy {{ "%.1f" % card.row.entropy }}, colourfulness {{ "%.0f" % card.row.colourfulness }}</span>
{% endif %}
<span>{{ card.row.id[:16] }}</span>
</figcaption>
{% if card.buttons %}
<div class="choice">
{% for button in card.buttons %}
<button type="button" data-verb="{{ button }}" aria-pressed="false">{{ button }}</button>
{% endfor %}
{% if card.row.suggested_label %}
<button type="button" data-verb="relabel" data-to="{{ card.row.suggested_label }}" aria-pressed="false">
it is {{ card.row.suggested_label }}</button>
{% endif %}
<input list="labels" placeholder="right label" aria-label="right label of {{ card.row.path }}" hidden>
</div>
{% endif %}
</figure>
{% endfor %}
{% if group|length > 1 %}</div>{% endif %}
{% endfor %}
</div>
</section>
{% endfor %}
<datalist id="labels">{% for label in labels %}<option value="{{ label }}"></option>{% endfor %}</datalist>
<div id="tray" hidden>
<div><strong id="count"></strong>
<label>who <input id="who" size="14" placeholder="your name"></label>
<label>why <input id="why" size="24" placeholder="for all of them, may be empty"></label>
<button type="button" id="copy">copy</button><button type="button" id="download">download</button></div>
<textarea id="rows" readonly aria-label="rows for data/decisions.csv"></textarea>
<p id="hint"></p>
</div>
<script>
"use strict";
const find = (id) => document.getElementById(id);
const figures = [...document.querySelectorAll("figure[data-id]")];
const decisions = new Map();
let saved = true;

function filter() {
  const label = find("by-class").value, reason = find("by-reason").value;
  let shown = 0;
  for (const figure of figures) {
    const hit = (!label || figure.dataset.label === label || figure.dataset.given === label);
    figure.dataset.hit = hit ? "1" : "";
  }
  for (const figure of figures) {
    const group = figure.closest(".group");  // a look-alike is shown with its whole group
    const hit = group ? [...group.children].some((one) => one.dataset.hit) : figure.dataset.hit;
    figure.hidden = !hit;
  }
  for (const section of document.querySelectorAll("section[data-reason]")) {
    const visible = section.querySelectorAll("figure[data-id]:not([hidden])").length;
    section.hidden = (reason && section.dataset.reason !== reason) || !visible;
    if (!section.hidden) shown += visible;
  }
  for (const group of document.querySelectorAll(".group")) group.hidden = !group.querySelector("figure:not([hidden])");
  find("shown").textContent = shown + (shown === 1 ? " picture" : " pictures");
}

function cell(text) {  // a spreadsheet runs what starts with these; decisions.csv is read without the quote
  const safe = /^[=+@-]/.test(text) ? "'" + text : text;
  return /[",;\\r\\n]|^\\s|\\s$/.test(safe) ? '"' + safe.replaceAll('"', '""') + '"' : safe;
}

function show() {
  const who = find("who").value.trim(), why = find("why").value.trim();
  for (const figure of figures) {
    const made = decisions.get(figure.dataset.id);
    figure.classList.toggle("decided", Boolean(made));
    for (const button of figure.querySelectorAll("button[data-verb]")) {
      const same = made && made.verb === button.dataset.verb &&
        (button.dataset.verb !== "relabel" || (button.dataset.to ? button.dataset.to === made.label : true));
      button.setAttribute("aria-pressed", String(Boolean(same)));
    }
  }
  const ready = [...decisions].filter(([, made]) => made.verb !== "relabel" || made.label);
  find("tray").hidden = !decisions.size;
  find("count").textContent = ready.length + (ready.length === 1 ? " decision" : " decisions");
  find("rows").value = ready.map(([id, made]) => [id, made.verb, made.label, who, why].map(cell).join(",") + "\\n").join("");
  const can = Boolean(who && ready.length);
  find("copy").disabled = find("download").disabled = !can;
  find("hint").textContent = !who ? "Write who decides; then copy or download the rows." :
    "Append these rows to data/decisions.csv and run dvc repro.";
}

for (const figure of figures) {
  const input = figure.querySelector(".choice input");
  figure.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-verb]");
    if (!button) return;
    const id = figure.dataset.id, verb = button.dataset.verb, label = button.dataset.to || "";
    const made = decisions.get(id);
    if (button.getAttribute("aria-pressed") === "true") decisions.delete(id);
    else decisions.set(id, { verb, label: verb === "relabel" ? label : "" });
    saved = false;
    input.hidden = !(decisions.get(id) && verb === "relabel");
    input.value = label;
    if (!input.hidden && !label) input.focus();
    show();
  });
  if (input) input.addEventListener("input", () => {
    decisions.set(figure.dataset.id, { verb: "relabel", label: input.value.trim() });
    saved = false;
    show();
  });
}
for (const id of ["who", "why"]) find(id).addEventListener("input", show);
find("copy").addEventListener("click", async () => {
  find("rows").select();
  try { await navigator.clipboard.writeText(find("rows").value); }
  catch { document.execCommand("copy"); }  // a page opened from a file may have no clipboard of its own
  saved = true;
  find("hint").textContent = "Copied. Append the rows to data/decisions.csv and run dvc repro.";
});
find("download").addEventListener("click", () => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([find("rows").value], { type: "text/csv" }));
  link.download = "decisions-to-append.csv";
  link.click();
  URL.revokeObjectURL(link.href);
  saved = true;
});
addEventListener("beforeunload", (event) => { if (!saved && decisions.size) event.preventDefault(); });
if (find("by-class")) {
  find("by-class").addEventListener("change", filter);
  find("by-reason").addEventListener("change", filter);
  filter();
}
</script>
{% endblock %}
"""
