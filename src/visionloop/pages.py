"""What the project's HTML pages share: one file without a network, light and dark with a switch, readable on a phone.

A page is a Jinja template that begins with `{% extends "page.html" %}` and fills the blocks `title`, `style` and `body`;
`{% from "chart.html" import chart %}` gives the macro that draws a `charts.Picture`. All text is escaped. The switch needs
no script (`:has` of CSS), so a page runs none unless its block `policy` allows it.

Does not cover: pages that Evidently and DVC write.
"""

from __future__ import annotations

import jinja2

_LIGHT = """--ink: #1c2430; --soft: #5b6675; --paper: #ffffff; --card: #f3f5f8; --line: #dbe0e7;
  --accent: #2b62b8; --best: #2b62b8; --second: #b3452f; --good: #2f7d5b; --bad: #b3452f;
  --s0: #c9d2de; --s1: #a9bad3; --s2: #86a1c8; --s3: #5f86bf; --s4: #3c6db4;"""
_DARK = """--ink: #e4e8ee; --soft: #9aa5b4; --paper: #14181e; --card: #1f252d; --line: #333c48;
  --accent: #82aaff; --best: #ffd166; --second: #e07a61; --good: #4fae86; --bad: #e07a61;
  --s0: #3a4452; --s1: #4b5f7c; --s2: #5c7ba8; --s3: #6f97d2; --s4: #8db6f5;"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:
{%- block policy %}{% endblock %}">
<title>{% block title %}{% endblock %}</title>
<style>
:root { color-scheme: light dark; %LIGHT% }
@media (prefers-color-scheme: dark) { :root { %DARK% } }
:root:has(#theme-light:checked) { color-scheme: light; %LIGHT% }
:root:has(#theme-dark:checked) { color-scheme: dark; %DARK% }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1.5rem 1rem 3rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 1rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .3rem; }
p { margin: .2rem 0 .8rem; color: var(--soft); }
code, pre { font: .85rem/1.45 ui-monospace, monospace; color: var(--ink); }
a { color: var(--accent); }
table { border-collapse: collapse; }
th, td { text-align: right; padding: .25rem .5rem; border-bottom: 1px solid var(--line);
  font-variant-numeric: tabular-nums; }
th { color: var(--soft); font-weight: 500; }
.scroll { overflow-x: auto; }
.tiles { display: flex; flex-wrap: wrap; gap: .8rem; }
.tiles div { background: var(--card); border-radius: .5rem; padding: .6rem 1rem; min-width: 7rem; color: var(--soft); }
.tiles strong { display: block; font-size: 1.35rem; color: var(--ink); font-variant-numeric: tabular-nums; }
figure { margin: 0; background: var(--card); border-radius: .5rem; padding: .6rem; min-width: 0; }
figcaption { overflow-wrap: anywhere; }
svg.chart { display: block; width: 100%; height: auto; overflow: visible; }
.chart text { fill: var(--soft); font-size: 11px; } .chart path { fill: none; }
.chart .grid { stroke: var(--line); stroke-width: 1; }
.theme { float: right; margin: 0 0 .5rem 1rem; padding: 0; border: 0; font-size: .8rem; color: var(--soft); }
.theme label { padding: .15rem .3rem; cursor: pointer; } .theme input { margin: 0 .2rem 0 0; vertical-align: -.1rem; }
@media print { .theme { display: none; } }
{% block style %}{% endblock %}
</style>
</head>
<body>
<fieldset class="theme" aria-label="colours of this page">
<label><input type="radio" name="theme" id="theme-system" checked>system</label>
<label><input type="radio" name="theme" id="theme-light">light</label>
<label><input type="radio" name="theme" id="theme-dark">dark</label>
</fieldset>
{% block body %}{% endblock %}
</body>
</html>
""".replace("%LIGHT%", _LIGHT).replace("%DARK%", _DARK)

_CHART = """{% macro chart(picture) %}
<svg class="chart" viewBox="0 0 {{ picture.width }} {{ picture.height }}" role="img" aria-label="{{ picture.title }}">
{% for y, text in picture.y_ticks %}
<line class="grid" x1="46" x2="{{ picture.width - 10 }}" y1="{{ y }}" y2="{{ y }}"/>
<text x="40" y="{{ y + 4 }}" text-anchor="end">{{ text }}</text>
{% endfor %}
{% for x, text in picture.x_ticks %}
<text x="{{ x }}" y="{{ picture.height - 18 }}" text-anchor="middle">{{ text }}</text>
{% endfor %}
<text x="{{ picture.width - 10 }}" y="{{ picture.height - 3 }}" text-anchor="end">{{ picture.x_label }}</text>
{% for path, kind in picture.lines %}
<path class="{{ kind }}" d="{{ path }}"/>
{% endfor %}
{% for point in picture.points %}
<circle class="{{ point.kind }}" cx="{{ point.x }}" cy="{{ point.y }}" r="{{ 5 if point.kind == "front" else 3.5 }}"><title>
{{- point.says }}</title></circle>
{% endfor %}
</svg>
{% endmacro %}
"""


def template(page: str) -> jinja2.Template:
    """A page's template, with the shared ones within its reach."""
    loader = jinja2.DictLoader({"page.html": _PAGE, "chart.html": _CHART})
    return jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(page)
