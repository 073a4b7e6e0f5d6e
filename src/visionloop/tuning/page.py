"""`reports/tune.html`: a study as one page that opens without a network, in light and dark, on a phone too.

Drawn as SVG (`charts`): Optuna's own pictures need plotly, which would make the page 4 MB of somebody's JavaScript.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from visionloop import pages
from visionloop.charts import SMALL, WIDE, Axis, Picture, counted, number, path, picture
from visionloop.config import SpaceEntry
from visionloop.tuning.results import Results, TrialRow
from visionloop.tuning.space import shown

_MAX_LINES = 200  # of the parallel coordinates; more are a grey block
_SHADES = 5  # of a point's colour, from the least accurate fifth to the most accurate


def render(results: Results, diff: str) -> str:
    """The page as HTML; `diff` is what the best trial would change in `params.yaml`."""
    best, baseline = results.best, results.baseline
    low, high = results.interval(best)
    tune = results.plan.tune
    return pages.template(_PAGE).render(
        results=results,
        tune=tune,
        best=best,
        baseline=baseline,
        low=low,
        high=high,
        counts={state: sum(row.state == state for row in results.rows) for state in ("pruned", "failed", "unfinished")},
        resumed=sum(row.resumed for row in results.rows),
        history=_history(results),
        curves=_curves(results),
        front=_front(results),
        on_front={row.number for row in results.front},
        importances=[(key, share, share / max(results.importances.values())) for key, share in results.importances.items()],
        slices=[_slice(results, key, entry) for key, entry in tune.space.items()],
        parallel=_parallel(results),
        rows=sorted(results.rows, key=lambda row: (row.accuracy is None, -(row.accuracy or 0), row.number)),
        keys=list(tune.space),
        number=number,
        diff=diff,
    )


def _says(row: TrialRow) -> str:
    accuracy = "" if row.accuracy is None else f"{row.accuracy:.2%}" + (" when stopped" if row.state == "pruned" else "")
    latency = "" if row.latency_ms is None else f"{row.latency_ms:.2f} ms"
    return ", ".join(part for part in (f"trial {row.number}", accuracy, latency, shown(row.values), row.error) if part)


def _accuracy_axis(values: Sequence[float]) -> Axis:
    """From the tenth part of the values upwards: one trial that learnt nothing must not press the others into a line."""
    if not values:
        return Axis(0, 1)
    low = sorted(values)[len(values) // 10]
    high = max(values)
    room = max((high - low) * 0.08, 0.002)
    return Axis(max(0.0, low - room), min(1.0, high + room))


def _history(results: Results) -> Picture:
    """Accuracy by trial, and the best so far."""
    shown_rows = [row for row in results.rows if row.accuracy is not None]
    y_axis = _accuracy_axis([row.accuracy or 0 for row in results.complete])
    best = -1.0
    steps: list[tuple[Any, float]] = []
    for row in results.complete:
        if (row.accuracy or 0) > best:
            if steps:
                steps.append((row.number, best))
            best = row.accuracy or 0
            steps.append((row.number, best))
    last = max((row.number for row in results.rows), default=1)
    steps.append((last, best))
    points = [(row.number, row.accuracy or 0, _says(row), row.state) for row in shown_rows]
    return picture("history", counted(0, max(last, 1)), y_axis, points, [(steps, "best")], x_label="trial")


def _curves(results: Results) -> Picture | None:
    """Accuracy by epoch, a line per trial."""
    rows = [row for row in results.rows if len(row.curve) > 1]
    if not rows:
        return None
    y_axis = _accuracy_axis([value for row in rows for _, value in row.curve])
    ordered = sorted(rows, key=lambda row: row.number == results.best.number)
    lines = [(row.curve, "best" if row.number == results.best.number else f"curve {row.state}") for row in ordered]
    points = [(*row.curve[-1], _says(row), row.state) for row in rows]
    last = max(epoch for row in rows for epoch, _ in row.curve)
    return picture("curves", counted(1, max(last, 2)), y_axis, points, lines, x_label="epoch")


def _front(results: Results) -> Picture | None:
    """Accuracy against latency, and the front that no trial is beyond."""
    if not results.front:
        return None
    rows = results.complete
    latencies = [row.latency_ms or 0 for row in rows]
    room = max((max(latencies) - min(latencies)) * 0.08, max(latencies) * 0.02)
    steps: list[tuple[Any, float]] = []
    for row in results.front:
        if steps:
            steps.append((row.latency_ms, steps[-1][1]))
        steps.append((row.latency_ms, row.accuracy or 0))
    steps.append((max(latencies) + room, steps[-1][1]))
    on_front = {row.number for row in results.front}
    points = [
        (row.latency_ms, row.accuracy or 0, _says(row), "front" if row.number in on_front else "complete")
        for row in sorted(rows, key=lambda row: row.number in on_front)
    ]
    y_axis = _accuracy_axis([row.accuracy or 0 for row in rows])
    x_axis = Axis(max(0.0, min(latencies) - room), max(latencies) + room)
    return picture("front", x_axis, y_axis, points, [(steps, "best")], x_label="milliseconds for one image")


def _axis(entry: SpaceEntry) -> Axis:
    if entry.choices is not None:
        return Axis(0, 1, choices=entry.choices)
    assert entry.low is not None and entry.high is not None
    steps = entry.values(whole=False) if entry.step is not None else None
    marks = tuple(float(value) for value in steps if isinstance(value, int | float)) if steps and len(steps) < 8 else ()
    return Axis(entry.low, entry.high, log=entry.log, marks=marks)


def _slice(results: Results, key: str, entry: SpaceEntry) -> Picture:
    """Accuracy by one key's value."""
    rows = results.complete
    points = [(row.values[key], row.accuracy or 0, _says(row), _shade(results, row)) for row in rows]
    return picture(key, _axis(entry), _accuracy_axis([row.accuracy or 0 for row in rows]), points, size=SMALL)


def _parallel(results: Results) -> tuple[list[tuple[str, str, str]], list[tuple[float, str, list[tuple[float, str]]]]]:
    """Lines (path, class, what it says) of the complete trials over an axis per key, and the axes (x, name, ticks)."""
    keys = list(results.plan.tune.space)
    axes = {key: _axis(entry) for key, entry in results.plan.tune.space.items()}
    columns = {key: 60 + index * (WIDE[0] - 120) / max(len(keys) - 1, 1) for index, key in enumerate(keys)}

    def height(share: float) -> float:
        return round(WIDE[1] - 22 - min(max(share, 0.0), 1.0) * (WIDE[1] - 66), 1)

    best_last = sorted(results.complete, key=lambda row: row.accuracy or 0)[-_MAX_LINES:]
    lines = [
        (path([(round(columns[key], 1), height(axes[key].share(row.values[key]))) for key in keys]),
         _shade(results, row), _says(row))
        for row in best_last
    ]  # fmt: skip
    ticks = [(round(columns[key], 1), key.rpartition(".")[2], [(height(share), text) for share, text in axes[key].ticks()])
             for key in keys]  # fmt: skip
    return lines, ticks


def _shade(results: Results, row: TrialRow) -> str:
    """The class of a point's colour, by the rank of its accuracy; the best has one of its own."""
    if row.number == results.best.number:
        return "front"
    worse = sum((other.accuracy or 0) < (row.accuracy or 0) for other in results.complete)
    return f"s{min(_SHADES - 1, worse * _SHADES // max(len(results.complete), 1))}"


_PAGE = """{% extends "page.html" %}
{% from "chart.html" import chart %}
{% block title %}
Tuning the {{ tune.family }}: {{ "%.2f"|format(100 * best.accuracy) }} %, {{ results.rows|length }} trials
{%- endblock %}
{% block style %}
p { max-width: 60rem; }
pre { background: var(--card); border-radius: .5rem; padding: .8rem 1rem; overflow-x: auto; margin: .4rem 0; }
pre .add { color: var(--good); } pre .del { color: var(--bad); }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); gap: 0 1.6rem; }
.slices { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 17rem), 1fr)); gap: .7rem; }
figcaption { font-size: .85rem; }
.wide svg { max-width: 60rem; margin: 0 auto; }
.wide svg text { font-size: 12px; }
path.best { stroke: var(--best); stroke-width: 2; } path.curve { stroke: var(--s2); stroke-width: 1; opacity: .6; }
path.pruned { stroke-dasharray: 4 3; }
circle { fill: var(--s3); } circle.pruned { fill: none; stroke: var(--soft); } circle.front { fill: var(--best); }
circle.unfinished { fill: var(--soft); }
{% for shade in range(5) %}
circle.s{{ shade }} { fill: var(--s{{ shade }}); } path.s{{ shade }} { stroke: var(--s{{ shade }}); opacity: .75; }
{% endfor %}
path.front { stroke: var(--best); stroke-width: 2.5; } path:hover { stroke-width: 3; opacity: 1; }
.bars { display: grid; grid-template-columns: minmax(7rem, max-content) 1fr 3.5rem; gap: .3rem .8rem; align-items: center; }
.bars span { overflow-wrap: anywhere; }
.bars b { display: block; height: .8rem; background: var(--s4); border-radius: .2rem; }
table { min-width: 100%; } th, td { white-space: nowrap; }
td.why { white-space: normal; text-align: left; min-width: 14rem; }
tr.best td { color: var(--best); font-weight: 600; } tr.pruned td, tr.failed td { color: var(--soft); }
{% endblock %}
{% block body %}
<h1>Tuning the {{ tune.family }}</h1>
<div class="tiles">
<div><strong>{{ "%.2f"|format(100 * best.accuracy) }} %</strong>trial {{ best.number }}, the best, on val<br>
95 % interval {{ "%.1f"|format(100 * low) }} to {{ "%.1f"|format(100 * high) }} %</div>
{% if best.latency_ms is not none %}
<div><strong>{{ "%.2f"|format(best.latency_ms) }} ms</strong>its latency, one image<br>
budget {{ "%g"|format(results.max_latency_ms) }} ms</div>
{% endif %}
{% if baseline %}
<div><strong>{{ "%+.2f"|format(100 * (best.accuracy - baseline.accuracy)) }} points</strong>against params.yaml<br>
trial {{ baseline.number }}, {{ "%.2f"|format(100 * baseline.accuracy) }} %</div>
{% endif %}
<div><strong>{{ results.complete|length }} of {{ results.rows|length }}</strong>trials to their end<br>
{{ counts.pruned }} stopped early, {{ counts.failed }} failed
{%- if counts.unfinished %}, {{ counts.unfinished }} not finished{% endif %}
</div>
<div><strong>{{ "%.1f"|format(results.rows|map(attribute="seconds")|select|sum / 60) }} min</strong>of training<br>
{{ tune.sampler }}, pruner {{ tune.pruner }}{% if resumed %}, {{ resumed }} resumed{% endif %}</div>
</div>
<p style="margin-top:1rem">Val has {{ results.val_images }} images: one of them is
{{ "%.2f"|format(100 / results.val_images) }} points.
The best of many is partly the luckiest, so expect a little less on images that no trial was judged on; the stage evaluate
measures it on test, which tuning never reads.</p>

<h2>What to write into params.yaml</h2>
{% if diff %}
<p>Trial {{ best.number }}; <code>visionloop tune --apply</code> writes it, with every comment kept, and
<code>--apply --trial N</code> another one. The same lines are in reports/tune.diff.</p>
<pre>{% for line in diff.splitlines() %}
{% set kind = "add" if line.startswith("+") else "del" if line.startswith("-") else "" %}
<span class="{{ kind }}">{{ line }}</span>
{% endfor %}</pre>
{% else %}
<p>Nothing: params.yaml has the values of trial {{ best.number }} already.</p>
{% endif %}

<div class="two">
<section><h2>History</h2>
<p>A point is a trial, a ring one that was stopped early; the line is the best so far.</p>
<figure class="wide">{{ chart(history) }}</figure></section>
{% if front %}
<section><h2>Accuracy against latency</h2>
<p>No trial is above the line and left of it. Latency is measured once for each network, in ONNX Runtime, on one machine.</p>
<figure class="wide">{{ chart(front) }}</figure></section>
{% endif %}
{% if curves %}
<section><h2>Epochs</h2>
<p>Accuracy on val after each epoch; dashed lines were stopped, the thick one is the best trial.</p>
<figure class="wide">{{ chart(curves) }}</figure></section>
{% endif %}
<section><h2>What mattered</h2>
{% if importances %}
<p>Share of the spread of accuracy that a key explains alone or with others (fANOVA, Hutter et al. 2014).</p>
<figure><div class="bars">
{% for key, share, length in importances %}
<span>{{ key }}</span><b style="width:{{ "%.1f"|format(100 * length) }}%"></b><span>{{ "%.0f"|format(100 * share) }} %</span>
{% endfor %}
</div></figure>
{% else %}
<p>Not known yet: it takes two keys, and eight complete trials that differ in accuracy.</p>
{% endif %}
</section>
</div>

<h2>Each key by itself</h2>
<p>Darker is more accurate in light mode, lighter in dark; the best trial is the large point.</p>
<div class="slices">
{% for picture in slices %}
<figure><figcaption>{{ picture.title }}</figcaption>{{ chart(picture) }}</figure>
{% endfor %}
</div>

{% if keys|length > 1 %}
<h2>All keys together</h2>
<p>A line is a complete trial; the thick one is the best.</p>
<figure class="wide scroll">
<svg class="chart" viewBox="0 0 640 260" style="min-width:34rem" role="img" aria-label="parallel coordinates">
{% for x, name, ticks in parallel[1] %}
<line class="grid" x1="{{ x }}" x2="{{ x }}" y1="44" y2="238"/>
<text x="{{ x }}" y="{{ 16 if loop.index0 % 2 else 30 }}" text-anchor="middle">{{ name }}</text>
{% for y, text in ticks %}
<text x="{{ x + 4 }}" y="{{ y + 4 }}">{{ text }}</text>
{% endfor %}
{% endfor %}
{% for path, kind, says in parallel[0] %}
<path class="{{ kind }}" d="{{ path }}"><title>{{ says }}</title></path>
{% endfor %}
</svg></figure>
{% endif %}

<h2>Trials</h2>
<div class="scroll"><table>
<tr><th>trial</th><th>val</th>{% if front %}<th>ms</th>{% endif %}<th>loss</th><th>s</th>
{% for key in keys %}<th>{{ key.rpartition(".")[2] }}</th>{% endfor %}<th></th></tr>
{% for row in rows %}
<tr class="{{ "best" if row.number == best.number else row.state }}"><td>{{ row.number }}</td>
<td>{{ "%.2f %%"|format(100 * row.accuracy) if row.accuracy is not none else "" }}</td>
{% if front %}<td>{{ "%.2f"|format(row.latency_ms) if row.latency_ms is not none else "" }}</td>{% endif %}
<td>{{ "%.3f"|format(row.val_loss) if row.val_loss is not none else "" }}</td>
<td>{{ "%.1f"|format(row.seconds) if row.seconds is not none else "" }}</td>
{% for key in keys %}<td>{{ number(row.values[key]) if key in row.values else "" }}</td>{% endfor %}
<td class="why">{{ "stopped after epoch %d"|format(row.epochs) if row.state == "pruned" else row.error if row.error
  else "not finished" if row.state == "unfinished" else "on the front" if row.number in on_front else "" }}</td></tr>
{% endfor %}
</table></div>
<p style="margin-top:1rem">Study {{ results.name }}.</p>
{% endblock %}
"""
