"""`reports/cleaning.html`: what `clean` found, as one page that opens without a network.

Does not cover: editing. A verdict is changed in the source or in the `clean` section of params.yaml.
"""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import jinja2
import numpy as np

from visionloop.errors import ImageError
from visionloop.preprocess import decode
from visionloop.records import CleanRow, ImageRow

MAX_PICTURES = 60  # of one reason; keeps the page near a megabyte
MAX_OF_CLUSTER = 8
_SIDE = 96

EXPLANATIONS: Mapping[str, str] = {
    "unreadable": "The bytes cannot be decoded as an image.",
    "truncated": "The file ends before the picture does; most often a broken download or copy.",
    "empty": "The file has no bytes.",
    "unsupported_format": "An image of a format that is not read here; convert it to JPEG, PNG, WebP or BMP.",
    "too_large": "More pixels than clean.max_megapixels; refused before decoding.",
    "too_small": "A side shorter than clean.min_side_pixels.",
    "blank": "One colour all over, within clean.blank_contrast.",
    "conflicting_labels": "The same bytes in two classes: one label must be wrong, so none of them is used.",
    "exact_duplicate": "The same bytes as an image that is kept.",
    "near_duplicate": "Looks like another image. Each row is one group of look-alikes, which the split keeps on one side.",
}


@dataclass(frozen=True)
class Card:
    """A row of the report with its picture, a data URI, or "" where there is none."""

    row: CleanRow
    picture: str


def chosen(rows: Sequence[CleanRow]) -> dict[str, list[list[int]]]:
    """Which rows the page shows: for each reason groups of positions, single ones but for near duplicates."""
    groups: dict[str, list[list[int]]] = {}
    members: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        members.setdefault(row.cluster, []).append(index)
    shown_clusters: set[str] = set()
    for index, row in enumerate(rows):
        found = groups.setdefault(row.reason, []) if row.reason else []
        if sum(map(len, found)) >= MAX_PICTURES:
            continue
        if row.reason != "near_duplicate":
            found.append([index])
        elif row.cluster not in shown_clusters:
            shown_clusters.add(row.cluster)
            unique = {rows[other].id: other for other in reversed(members[row.cluster])}
            found.append(sorted(unique.values())[:MAX_OF_CLUSTER])
    return {reason: groups[reason] for reason in EXPLANATIONS if reason in groups}


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


def render(rows: Sequence[CleanRow], numbers: Mapping[str, float], images: Mapping[str, str]) -> str:
    """The page as HTML. Names and labels are escaped; `images` are data URIs by image id."""
    counts = Counter(row.reason for row in rows)
    rejecting = {row.reason for row in rows if row.verdict == "reject"}
    sections = [
        {
            "name": reason,
            "title": reason.replace("_", " "),
            "why": EXPLANATIONS[reason],
            "count": counts[reason],
            "rejected": reason in rejecting,
            "groups": [[Card(rows[index], images.get(rows[index].id, "")) for index in group] for group in groups],
            "shown": len(groups),
        }
        for reason, groups in chosen(rows).items()
    ]
    return _template().render(
        rows=rows, numbers=numbers, sections=sections, classes=_classes(rows), measures=_measures(rows)
    )


def _classes(rows: Sequence[CleanRow]) -> list[dict[str, object]]:
    kept = Counter(row.label for row in rows if row.verdict == "keep")
    every = Counter(row.label for row in rows)
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
        for label in sorted(every)
    ]


def _measures(rows: Sequence[CleanRow]) -> list[tuple[str, list[str]]]:
    kept = [row for row in rows if row.verdict == "keep"]
    if not kept:
        return []
    titles = {
        "width_pixels": "width, pixels",
        "height_pixels": "height, pixels",
        "brightness": "brightness, mean gray 0 to 255",
        "contrast": "contrast, standard deviation of gray",
        "sharpness": "sharpness, variance of the Laplacian",
    }
    table = []
    for name, title in titles.items():
        values = np.quantile([getattr(row, name) for row in kept], (0, 0.05, 0.5, 0.95, 1))
        table.append((title, [f"{value:,.0f}" if value >= 100 else f"{value:.4g}" for value in values]))
    return table


def _template() -> jinja2.Template:
    return jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(_PAGE)


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Cleaning: {{ numbers.kept }} of {{ numbers.images }} images kept</title>
<style>
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5b6675; --paper: #ffffff; --card: #f3f5f8; --line: #dbe0e7;
  --keep: #2f7d5b; --reject: #b3452f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ee; --soft: #9aa5b4; --paper: #14181e; --card: #1f252d;
  --line: #333c48; --keep: #4fae86; --reject: #e07a61; } }
body { margin: 2rem auto; max-width: 72rem; padding: 0 1.5rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 1rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .3rem; }
p { margin: .2rem 0 .8rem; color: var(--soft); }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: right; padding: .25rem .6rem; border-bottom: 1px solid var(--line);
  font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; overflow-wrap: anywhere; } th { color: var(--soft); font-weight: 500; }
td.bar { width: 45%; } .bar div { display: flex; height: .7rem; }
.bar i { background: var(--keep); } .bar b { background: var(--reject); }
.tiles { display: flex; flex-wrap: wrap; gap: .8rem; }
.tiles div { background: var(--card); border-radius: .5rem; padding: .6rem 1rem; min-width: 7rem; color: var(--soft); }
.tiles strong { display: block; font-size: 1.35rem; color: var(--ink); font-variant-numeric: tabular-nums; }
.badge { font-size: .8rem; font-weight: 500; padding: .1rem .5rem; border-radius: 1rem; color: var(--paper);
  background: var(--keep); vertical-align: .1rem; } .badge.reject { background: var(--reject); }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); gap: .7rem; }
.group { display: grid; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); gap: .7rem; grid-column: 1 / -1;
  border-left: 3px solid var(--line); padding-left: .7rem; }
figure { margin: 0; background: var(--card); border-radius: .5rem; padding: .6rem; font-size: .8rem; line-height: 1.35; }
figure img, figure .none { display: block; width: 96px; height: 96px; object-fit: contain; margin: 0 auto .4rem;
  image-rendering: auto; }
figure img.tiny { image-rendering: pixelated; }
figure .none { display: grid; place-items: center; border: 1px dashed var(--line); color: var(--soft);
  box-sizing: border-box; }
figcaption { overflow-wrap: anywhere; } figcaption span { color: var(--soft); display: block; }
</style>
</head>
<body>
<h1>What cleaning found</h1>
<div class="tiles">
<div><strong>{{ "{:,}".format(numbers.images) }}</strong>images</div>
<div><strong>{{ "{:,}".format(numbers.kept) }}</strong>kept</div>
<div><strong>{{ "{:,}".format(numbers.rejected) }}</strong>rejected, {{ "%.1f" % (100 * numbers.rejected_share) }} %</div>
<div><strong>{{ numbers.classes }}</strong>classes</div>
<div><strong>{{ "{:,}".format(numbers.near_duplicate_clusters) }}</strong>groups of look-alikes</div>
</div>

<h2>Classes</h2>
<table>
<tr><th>class</th><th>images</th><th>kept</th><th>rejected</th><th></th></tr>
{% for one in classes %}
<tr><td>{{ one.label }}</td><td>{{ one.images }}</td><td>{{ one.kept }}</td><td>{{ one.rejected }}</td>
<td class="bar"><div><i style="width:{{ "%.2f" % one.kept_percent }}%"></i>
<b style="width:{{ "%.2f" % one.rejected_percent }}%"></b></div></td></tr>
{% endfor %}
</table>

{% if measures %}
<h2>Kept images in numbers</h2>
<table>
<tr><th></th><th>least</th><th>5 %</th><th>median</th><th>95 %</th><th>most</th></tr>
{% for title, values in measures %}
<tr><td>{{ title }}</td>{% for value in values %}<td>{{ value }}</td>{% endfor %}</tr>
{% endfor %}
</table>
{% endif %}

{% if not sections %}
<h2>No remarks</h2>
<p>Every image can be used, and none resembles another.</p>
{% endif %}
{% for section in sections %}
<h2 id="{{ section.name }}">{{ section.title }}, {{ section.count }}
<span class="badge{{ " reject" if section.rejected }}">{{ "rejected" if section.rejected else "kept" }}</span></h2>
<p>{{ section.why }}{% if section.name != "near_duplicate" and section.shown < section.count %}
 The first {{ section.shown }} are shown; all stand in data/clean.parquet.{% endif %}</p>
<div class="cards">
{% for group in section.groups %}
{% if group|length > 1 %}<div class="group">{% endif %}
{% for card in group %}
<figure>
{% if card.picture %}
<img src="{{ card.picture }}" alt="{{ card.row.label }}"{% if card.row.width_pixels <= 32 %} class="tiny"{% endif %}>
{% else %}
<div class="none">no picture</div>
{% endif %}
<figcaption><strong>{{ card.row.label }}</strong> {{ card.row.path }}
{% if card.row.width_pixels %}
<span>{{ card.row.width_pixels }} x {{ card.row.height_pixels }} {{ card.row.format }} {{ card.row.mode }}, brightness
{{ "%.0f" % card.row.brightness }}, contrast {{ "%.1f" % card.row.contrast }},
sharpness {{ "%.0f" % card.row.sharpness }}</span>
{% endif %}
{% if card.row.detail %}<span>{{ card.row.detail }}</span>{% endif %}
</figcaption>
</figure>
{% endfor %}
{% if group|length > 1 %}</div>{% endif %}
{% endfor %}
</div>
{% endfor %}
</body>
</html>
"""
