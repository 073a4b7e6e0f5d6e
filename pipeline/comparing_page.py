"""`reports/compare.html`: two runs side by side as one page that opens without a network.

Does not cover: what is compared, and how (`comparing`).
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.comparing import SideBySide
from visionloop.pages import template

_WIDTH, _LEFT, _RIGHT, _ROW = 640, 200, 16, 30


@dataclass(frozen=True)
class Bar:
    """A difference and its interval, as places in the picture."""

    name: str
    y: int
    low: float
    at: float
    high: float
    says: str
    kind: str  # "good", "bad", or "" where 0 lies within


def render(found: SideBySide) -> str:
    """The page as HTML; all names are escaped."""
    bars, zero, ticks = _bars(found)
    return template(_PAGE).render(
        found=found,
        old=found.old,
        new=found.new,
        bars=bars,
        zero=zero,
        ticks=ticks,
        height=len(bars) * _ROW + 34,
        width=_WIDTH,
    )


def _bars(found: SideBySide) -> tuple[list[Bar], float, list[tuple[float, str]]]:
    rows = [(f"{pair.title}, {one.metric.replace('_', ' ')}", one) for pair in found.pairs for one in pair.differences]
    reach = max((abs(value) for _, one in rows for value in (one.low, one.high)), default=0.01)

    def place(value: float) -> float:
        return round(_LEFT + (value / reach + 1) / 2 * (_WIDTH - _LEFT - _RIGHT), 1)

    bars = [
        Bar(
            name,
            20 + index * _ROW,
            place(one.low),
            place(one.difference),
            place(one.high),
            f"{100 * one.difference:+.2f} points, 95 % interval {100 * one.low:+.2f} to {100 * one.high:+.2f}",
            "good" if one.low > 0 else "bad" if one.high < 0 else "",
        )
        for index, (name, one) in enumerate(rows)
    ]
    return bars, place(0), [(place(reach * part), f"{100 * reach * part:+.1f}") for part in (-1, -0.5, 0.5, 1)]


_PAGE = """{% extends "page.html" %}
{% block title %}{{ new.name }} against {{ old.name }}{% endblock %}
{% block style %}
.verdict { background: var(--card); border-radius: .5rem; padding: .7rem 1rem; margin: .5rem 0; color: var(--ink); }
.verdict strong { display: block; }
table { min-width: max(100%, 34rem); } td:first-child, th:first-child { text-align: left; overflow-wrap: anywhere; }
td { overflow-wrap: anywhere; }
.forest { max-width: 60rem; } .forest svg { display: block; width: 100%; height: auto; }
.forest text { fill: var(--soft); font-size: 12px; } .forest .name { fill: var(--ink); }
.forest line { stroke: var(--soft); stroke-width: 3; stroke-linecap: round; } .forest circle { fill: var(--soft); }
.forest .good line { stroke: var(--good); } .forest .good circle { fill: var(--good); }
.forest .bad line { stroke: var(--bad); } .forest .bad circle { fill: var(--bad); }
.forest .grid { stroke: var(--line); stroke-width: 1; } .forest .zero { stroke: var(--ink); stroke-width: 1; }
td.good { color: var(--good); } td.bad { color: var(--bad); }
{% endblock %}
{% block body %}
<h1>{{ new.name }} against {{ old.name }}</h1>
<p>First: {{ old.title }}<br>Second: {{ new.title }}</p>
{% for pair in found.pairs %}
<div class="verdict"><strong>{{ pair.title }}</strong>{{ pair.sentence }}</div>
{% endfor %}
{% for sentence in old.lacks + new.lacks %}
<div class="verdict">{{ sentence }}</div>
{% endfor %}
{% if bars %}
<h2>Differences on the same test images</h2>
<p>Second minus first in points, with 95 % intervals from paired resampling; an interval across the line in the middle proves
no difference.</p>
<figure class="forest"><svg viewBox="0 0 {{ width }} {{ height }}" role="img" aria-label="differences with intervals">
{% for x, text in ticks %}
<line class="grid" x1="{{ x }}" x2="{{ x }}" y1="6" y2="{{ height - 24 }}"/>
<text x="{{ x }}" y="{{ height - 8 }}" text-anchor="{{ "end" if loop.last else "middle" }}">{{ text }}</text>
{% endfor %}
<line class="zero" x1="{{ zero }}" x2="{{ zero }}" y1="6" y2="{{ height - 24 }}"/>
<text x="{{ zero }}" y="{{ height - 8 }}" text-anchor="middle">0</text>
{% for bar in bars %}
<g class="{{ bar.kind }}"><title>{{ bar.says }}</title>
<text class="name" x="0" y="{{ bar.y + 4 }}">{{ bar.name }}</text>
<line x1="{{ bar.low }}" x2="{{ bar.high }}" y1="{{ bar.y }}" y2="{{ bar.y }}"/>
<circle cx="{{ bar.at }}" cy="{{ bar.y }}" r="5"/></g>
{% endfor %}
</svg></figure>
{% endif %}
<h2>Params that differ</h2>
{% if found.params %}
<div class="scroll"><table><tr><th>key</th><th>{{ old.name }}</th><th>{{ new.name }}</th></tr>
{% for key, before, after in found.params %}
<tr><td><code>{{ key }}</code></td><td>{{ before }}</td><td>{{ after }}</td></tr>
{% endfor %}
</table></div>
{% else %}
<p>None.</p>
{% endif %}
<h2>Metrics on the test images</h2>
<p>In brackets 95 % intervals; that of a difference is given where both models answered the same images.</p>
<div class="scroll"><table><tr><th>metric</th><th>{{ old.name }}</th><th>{{ new.name }}</th><th>difference</th></tr>
{% for row in found.metrics %}
<tr><td>{{ row[0] }}</td><td>{{ row[1] }}</td><td>{{ row[2] }}</td><td>{{ row[3] }}</td></tr>
{% endfor %}
</table></div>
{% for pair in found.pairs if pair.classes %}
<h2>Classes: {{ pair.title }}</h2>
<p>Recall, and how many images only one of the two answers rightly.</p>
<div class="scroll"><table><tr><th>class</th><th>images</th><th>{{ old.name }}</th><th>{{ new.name }}</th><th>points</th>
<th>gained</th><th>lost</th></tr>
{% for one in pair.classes|sort(attribute="difference") %}
<tr><td>{{ one.label }}</td><td>{{ one.images }}</td><td>{{ "%.1f"|format(100 * one.second) }} %</td>
<td>{{ "%.1f"|format(100 * one.first) }} %</td>
<td class="{{ "good" if one.difference > 0 else "bad" if one.difference < 0 else "" }}">
{{- "%+.1f"|format(100 * one.difference) }}</td><td>{{ one.gained }}</td><td>{{ one.lost }}</td></tr>
{% endfor %}
</table></div>
{% endfor %}
<h2>Other figures that differ</h2>
<p>Times are those of the machine and the moment of each run.</p>
<div class="scroll"><table><tr><th>figure</th><th>{{ old.name }}</th><th>{{ new.name }}</th><th>difference</th></tr>
{% for row in found.figures %}
<tr><td>{{ row[0] }}</td><td>{{ row[1] }}</td><td>{{ row[2] }}</td><td>{{ row[3] }}</td></tr>
{% endfor %}
</table></div>
{% endblock %}
"""
