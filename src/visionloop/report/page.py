"""`reports/report.html`: the report of a run as one page without a network and without a script.

Does not cover: what stands in it (`story`), and the style that all pages share (`pages`).
"""

from __future__ import annotations

from visionloop import pages
from visionloop.report.blocks import Report

MOST_ROWS = 24  # longer tables are folded


def render(report: Report) -> str:
    """The page as HTML; all text is escaped, pictures are data URIs."""
    return pages.template(_PAGE).render(report=report, most_rows=MOST_ROWS)


_PAGE = """{% extends "page.html" %}
{% from "chart.html" import chart %}
{% block title %}{{ report.title }}: report{% endblock %}
{% block style %}
html { scroll-behavior: smooth; scroll-padding-top: 1rem; }
@media (prefers-reduced-motion: reduce) { html { scroll-behavior: auto; } }
h1, h2, h3, p, li, th, td { overflow-wrap: break-word; }
h2 { font-size: 1.3rem; margin: 0 0 .6rem; } h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
p { max-width: 60rem; } .lead { color: var(--ink); font-size: 1.05rem; }
section { border-top: 1px solid var(--line); margin-top: 2rem; padding-top: 1.2rem; }
nav ol { list-style: none; padding: 0; margin: 1.2rem 0 0; display: flex; flex-wrap: wrap; gap: .4rem; }
nav a { display: inline-block; padding: .25rem .6rem; border-radius: 1rem; background: var(--card); text-decoration: none; }
nav a:hover, nav a:focus-visible { text-decoration: underline; } nav a.missing { color: var(--soft); }
.missing p, p.missing { color: var(--soft); border-left: 3px solid var(--line); padding-left: .7rem; }
.warning { color: var(--bad); border-left: 3px solid var(--bad); padding-left: .7rem; }
.tiles { margin: .6rem 0 1rem; } .tiles div { max-width: 100%; overflow-wrap: anywhere; flex: 0 1 auto; }
.scroll:focus-visible, figure:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
.scroll { max-width: 100%; margin-bottom: .9rem; } .scroll table { min-width: min(100%, 24rem); }
caption { text-align: left; font-weight: 600; padding: .6rem 0 .3rem; }
th[scope=row] { text-align: left; color: var(--ink); font-weight: 400; min-width: 7rem; max-width: 22rem; }
th[scope=row], thead th:first-child { position: sticky; left: 0; background: var(--paper); }
@media (max-width: 40rem) { th[scope=row] { max-width: 8.5rem; } }
th[scope=col]:first-child { text-align: left; } .wordy th, .wordy td { text-align: left; vertical-align: top; }
td { white-space: nowrap; } .wordy td { white-space: normal; min-width: 9rem; }
td.bar { width: 40%; min-width: 8rem; } td.bar div { display: flex; height: .7rem; }
td.bar i { display: block; height: 100%; } .part-0 { background: var(--s4); } .part-1 { background: var(--s2); }
.part-2 { background: var(--good); }
.swatch { display: inline-block; width: .7rem; height: .7rem; margin-right: .3rem; }
.note { font-size: .85rem; margin: .3rem 0 .8rem; }
.drawings { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); gap: .8rem;
  margin: .8rem 0; align-items: start; }
.drawings .broad { grid-column: 1 / -1; }
figcaption { font-size: .85rem; margin-bottom: .4rem; } figcaption code { color: var(--soft); display: block; }
.paper { background: #fff; border-radius: .35rem; padding: .4rem; overflow-x: auto; }
.paper img { display: block; max-width: 100%; height: auto; margin: 0 auto; }
@media (max-width: 40rem) { .paper img.wide { max-width: none; width: 42rem; } .theme { float: none; margin: 0 0 .8rem; } }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: .8rem; }
.charts svg { max-width: 34rem; margin: 0 auto; } .charts text { font-size: 12px; }
.chart path.line-cnn, .key-line-cnn { stroke: var(--best); } .chart path.line-vit { stroke-dasharray: 6 3; }
.chart path.line-vit { stroke: var(--second); } .chart path { stroke-width: 2; }
circle.dot-cnn { fill: var(--best); } circle.dot-vit { fill: var(--second); } circle.front { fill: var(--good); }
.legend { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; margin: .4rem 0; padding: 0; list-style: none;
  color: var(--soft); }
.legend .chart { display: inline-block; width: 2.2rem; height: .7rem; margin-right: .4rem; }
details { margin: 1rem 0; } summary { cursor: pointer; color: var(--accent); }
pre { background: var(--card); border-radius: .5rem; padding: .8rem 1rem; overflow-x: auto; }
.top { font-size: .85rem; }
@media print { .paper, .scroll { overflow: visible; } nav, .top { display: none; } }
{% endblock %}
{% macro table(block) %}
{% set folded = block.rows|length > most_rows %}
{% if folded %}<details><summary>{{ block.title }}, {{ block.rows|length }} rows</summary>{% endif %}
<div class="scroll{{ " wordy" if block.wordy }}" tabindex="0" role="region" aria-label="{{ block.title }}">
<table>
<caption>{{ block.title }}</caption>
<thead><tr>{% for column in block.columns %}<th scope="col">{{ column }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in block.rows %}
<tr><th scope="row">{{ row[0] }}</th>{% for cell in row[1:] %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
{% for note in block.notes %}
<p class="note">{{ note }}</p>
{% endfor %}
{% if folded %}</details>{% endif %}
{% endmacro %}
{% macro shares(block) %}
<div class="scroll" tabindex="0" role="region" aria-label="{{ block.title }}">
<table>
<caption>{{ block.title }}</caption>
<thead><tr>{% for column in block.columns %}<th scope="col">
{%- if 0 < loop.index0 < block.columns|length - 1 %}<i class="swatch part-{{ loop.index0 - 1 }}"></i>{% endif %}
{{ column }}</th>{% endfor %}<td aria-hidden="true"></td></tr></thead>
<tbody>
{% for name, parts in block.rows %}
<tr><th scope="row">{{ name }}</th>{% for part in parts %}<td>{{ "{:,}".format(part) }}</td>{% endfor %}
<td>{{ "{:,}".format(parts|sum) }}</td><td class="bar" aria-hidden="true"><div>
{%- for part in parts %}<i class="part-{{ loop.index0 }}" style="width:{{ "%.2f"|format(100 * part / block.most) }}%"></i>
{%- endfor %}</div></td></tr>
{% endfor %}
</tbody></table></div>
{% for note in block.notes %}
<p class="note">{{ note }}</p>
{% endfor %}
{% endmacro %}
{% macro one(block) %}
{% if block.kind == "text" %}
<p>{{ block.text }}</p>
{% elif block.kind == "missing" %}
<p class="missing">{{ block.text }}</p>
{% elif block.kind == "tiles" %}
<div class="tiles">{% for value, words in block.tiles %}<div><strong>{{ value }}</strong>{{ words }}</div>{% endfor %}</div>
{% elif block.kind == "table" %}{{ table(block) }}
{% elif block.kind == "shares" %}{{ shares(block) }}
{% elif block.kind == "charts" %}
<ul class="legend">{% for kind, words in block.legend %}
<li><svg class="chart" viewBox="0 0 35 11" aria-hidden="true"><path class="{{ kind }}" d="M1 6H34"/></svg>{{ words }}</li>
{% endfor %}</ul>
<div class="charts">{% for picture in block.charts %}
<figure><figcaption>{{ picture.title }}</figcaption>{{ chart(picture) }}</figure>
{% endfor %}</div>
{% elif block.kind == "details" %}
<details><summary>{{ block.title }}</summary><pre tabindex="0">{{ block.text }}</pre></details>
{% endif %}
{% endmacro %}
{% block body %}
<header id="top">
<h1>{{ report.title }}</h1>
<p class="lead">{{ report.sentences|join(" ") }}</p>
{{ one(report.tiles) if report.tiles.tiles }}
{% for warning in report.warnings %}
<p class="warning">{{ warning }}</p>
{% endfor %}
</header>
<nav aria-label="contents"><ol>
{% for section in report.sections %}
<li><a href="#{{ section.name }}"{% if section.is_missing %} class="missing"{% endif %}>{{ section.title }}
{%- if section.is_missing %} (not run){% endif %}</a></li>
{% endfor %}
</ol></nav>
<main>
{% for section in report.sections %}
<section id="{{ section.name }}" aria-labelledby="{{ section.name }}-title"
 {%- if section.is_missing %} class="missing"{% endif %}>
<h2 id="{{ section.name }}-title">{{ section.title }}</h2>
{% for kind, blocks in section.runs %}
{% if kind == "drawing" %}
<div class="drawings">{% for block in blocks %}
<figure{% if block.image.width > 1000 and block.image.width > 2.3 * block.image.height %} class="broad"{% endif %}>
<figcaption>{{ block.title }}<code>{{ block.path }}</code></figcaption>
<div class="paper" tabindex="0" role="region" aria-label="{{ block.title }}"><img src="{{ block.image.uri }}"
 width="{{ block.image.width }}" height="{{ block.image.height }}" alt="{{ block.title }}"
 {%- if block.image.width > 700 %} class="wide"{% endif %}></div></figure>
{% endfor %}</div>
{% else %}{% for block in blocks %}{{ one(block) }}{% endfor %}{% endif %}
{% endfor %}
<p class="top"><a href="#top">to the top</a></p>
</section>
{% endfor %}
</main>
{% endblock %}
"""
