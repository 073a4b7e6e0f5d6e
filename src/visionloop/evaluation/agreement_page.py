"""`reports/parity.html`: the parity contract of a run on one page without a network and without a script.

Does not cover: the numbers themselves (`agreement`), and the style that all pages share (`pages`).
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from visionloop import pages
from visionloop.config import Tolerances
from visionloop.evaluation.agreement import REASONS, Pair
from visionloop.preprocess import PixelArray, encode_png

MOST_SHOWN = 24  # disagreeing images


@dataclass(frozen=True, slots=True)
class Kind:
    """All files of one kind."""

    name: str
    files: int
    same_pixels: int  # of them, read alike by the project's Python and that of the served models
    distances: tuple[float, ...]  # largest of any of them, for each pair of `Contract.by_kind`


@dataclass(frozen=True, slots=True)
class Refusal:
    """A file that should be refused, and what was said of it."""

    name: str
    offline: str  # the sentence; "" where it was answered
    served: str
    same: bool


@dataclass(frozen=True)
class Shown:
    """An image that two forms name differently."""

    what: str  # kind and number
    pixels: PixelArray  # [H, W, 3]
    answers: Sequence[tuple[str, str]]  # form, what it says

    @property
    def uri(self) -> str:
        """The image as a data URI."""
        return f"data:image/png;base64,{base64.b64encode(encode_png(self.pixels)).decode()}"


@dataclass(frozen=True)
class Contract:
    """All that the page shows."""

    title: str
    sentences: Sequence[str]
    over: Sequence[str]
    tiles: Sequence[tuple[str, str]]
    pairs: Sequence[Pair]
    by_kind: Sequence[Pair]  # whose distances stand in `kinds`
    kinds: Sequence[Kind]
    refusals: Sequence[Refusal]
    decoders: Sequence[tuple[str, str, str]]  # library, version of the project, of the served models
    decoder_sentence: str
    graphs: Sequence[tuple[str, Mapping[str, object]]]
    shown: Sequence[Shown]
    disagreeing: int  # images; `shown` has the first of them


def render(contract: Contract, tolerances: Tolerances) -> str:
    """The page as HTML; all text is escaped, pictures are data URIs."""
    limits = {name: getattr(tolerances, name) for name in Tolerances.model_fields}
    return pages.template(_PAGE).render(contract=contract, limits=limits, reasons=REASONS)


_PAGE = """{% extends "page.html" %}
{% block title %}{{ contract.title }}{% endblock %}
{% block style %}
th[scope=row] { text-align: left; color: var(--ink); font-weight: 400; min-width: 9rem; overflow-wrap: break-word; }
th[scope=row], thead th:first-child { position: sticky; left: 0; background: var(--paper); }
th[scope=col]:first-child, .wordy th, .wordy td { text-align: left; vertical-align: top; }
thead th { vertical-align: bottom; }
.limit { display: block; color: var(--soft); font-size: .8rem; white-space: nowrap; }
.bad { color: var(--bad); font-weight: 600; } .good { color: var(--good); }
p { max-width: 60rem; } p.lead { color: var(--ink); font-size: 1.05rem; }
p.over { color: var(--bad); border-left: 3px solid var(--bad); padding-left: .7rem; }
.tiles { margin: 1rem 0; }
th.reason, td.reason { min-width: 15rem; color: var(--soft); text-align: left; }
.scroll { max-width: 100%; }
.scroll:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
.images { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 15rem), 1fr)); gap: .8rem; }
.images img { display: block; width: 8rem; height: 8rem; object-fit: contain; image-rendering: pixelated; background: #fff; }
.images table { width: 100%; font-size: .85rem; margin-top: .4rem; }
.images th[scope=row] { background: none; position: static; min-width: 0; max-width: none; }
details { margin: .8rem 0; } summary { cursor: pointer; color: var(--accent); }
@media (max-width: 40rem) {
  th[scope=row] { min-width: 7.5rem; max-width: 8.5rem; } .theme { float: none; margin: 0 0 .8rem; }
}
{% endblock %}
{% macro tiny(value) %}{{ "0" if value == 0 else "%.1e"|format(value) }}{% endmacro %}
{% macro number(value, limit, least=False) %}
{% if limit is undefined %}<td>{{ "%.2f %%"|format(100 * value) if least else tiny(value) }}</td>{% else %}
{% set beyond = value < limit if least else not value <= limit %}
<td{% if beyond %} class="bad"{% endif %}>{{ "%.2f %%"|format(100 * value) if least else tiny(value) }}
<span class="limit">
{%- if least %}at least {{ "%g %%"|format(100 * limit) }}{% else %}at most {{ "%g"|format(limit) }}{% endif %}</span></td>
{% endif %}{% endmacro %}
{% block body %}
<h1>{{ contract.title }}</h1>
<p class="lead">{{ contract.sentences|join(" ") }}</p>
{% for sentence in contract.over %}
<p class="over">{{ sentence }}</p>
{% endfor %}
<div class="tiles">{% for value, words in contract.tiles %}
<div><strong>{{ value }}</strong>{{ words }}</div>{% endfor %}</div>

<h2>Pairs</h2>
<p>The same images through two forms of the model. Distances are of logits, calibrated; of files sent to the server, of the
logarithms of the probabilities. Limits stand in <code>parity.tolerances</code> of params.yaml.</p>
<div class="scroll" tabindex="0" role="region" aria-label="Pairs"><table>
<thead><tr><th scope="col">forms</th><th scope="col">same first class</th><th scope="col">largest distance</th>
<th scope="col">mean distance</th><th scope="col">of the embedding</th><th scope="col">verdict</th>
<th scope="col" class="reason">why they may differ</th></tr></thead>
<tbody>
{% for pair in contract.pairs %}
{% set limit = limits.get(pair.tolerance) %}
<tr><th scope="row">{{ pair.reference }} and {{ pair.form }}</th>
{{ number(pair.distance.agreement, limit.min_agreement, True) }}
{{ number(pair.distance.max_logit_distance, limit.max_logit_distance) }}
{{ number(pair.distance.mean_logit_distance, limit.mean_logit_distance) }}
{% if pair.distance.max_embedding_distance is none %}<td></td>
{% else %}{{ number(pair.distance.max_embedding_distance, limit.max_logit_distance) }}{% endif %}
<td class="{{ "bad" if pair.over else "good" }}">
{{- "told" if limit is none else "beyond" if pair.over else "within" }}</td>
<td class="reason">{{ reasons[pair.tolerance] }}</td></tr>
{% endfor %}
</tbody></table></div>

<h2>What decodes</h2>
<p>{{ contract.decoder_sentence }}</p>
<div class="scroll" tabindex="0" role="region" aria-label="What decodes"><table>
<thead><tr><th scope="col">library</th><th scope="col">the project</th><th scope="col">the served models</th></tr></thead>
<tbody>
{% for name, here, there in contract.decoders %}
<tr><th scope="row">{{ name }}</th><td>{{ here }}</td><td{% if here != there %} class="bad"{% endif %}>{{ there }}</td></tr>
{% endfor %}
</tbody></table></div>

<h2>Kinds of files</h2>
<p>Files as they were collected, and others made of the first of them. Same pixels: of how many files the Python of the
served models reads the same pixels as the project's. Distances: the largest of any file of the kind, of the form at the
head of the column to the one that it has to answer like.</p>
<div class="scroll" tabindex="0" role="region" aria-label="Kinds of files"><table>
<thead><tr><th scope="col">kind</th><th scope="col">files</th><th scope="col">same pixels</th>
{% for pair in contract.by_kind %}<th scope="col">{{ pair.form }}</th>{% endfor %}</tr></thead>
<tbody>
{% for kind in contract.kinds %}
<tr><th scope="row">{{ kind.name }}</th><td>{{ kind.files }}</td>
<td{% if kind.same_pixels != kind.files %} class="bad"{% endif %}>{{ kind.same_pixels }}</td>
{% for value in kind.distances %}<td>{{ tiny(value) }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table></div>

<h2>Files that are refused</h2>
<div class="scroll wordy" tabindex="0" role="region" aria-label="Files that are refused"><table>
<thead><tr><th scope="col">file</th><th scope="col">offline</th><th scope="col">served, over HTTP and gRPC</th></tr></thead>
<tbody>
{% for one in contract.refusals %}
<tr><th scope="row">{{ one.name }}</th><td>{{ one.offline or "answered" }}</td>
<td class="{{ "good" if one.same else "bad" }}">{{ "the same sentence" if one.same else one.served or "answered" }}</td></tr>
{% endfor %}
</tbody></table></div>

<h2>The ONNX files</h2>
<div class="scroll wordy" tabindex="0" role="region" aria-label="The ONNX files"><table>
<thead><tr><th scope="col">file</th>{% for name in contract.graphs[0][1] %}<th scope="col">{{ name.replace("_", " ") }}</th>
{% endfor %}</tr></thead>
<tbody>
{% for path, facts in contract.graphs %}
<tr><th scope="row">{{ path }}</th>{% for value in facts.values() %}<td>{{ value }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
<p>Valid by ONNX's full check and strict shape inference; names, types, an open batch and metadata are those of the card.</p>

<h2>Images that forms name differently</h2>
{% if contract.shown %}
<p>{{ contract.disagreeing }} of them{% if contract.disagreeing > contract.shown|length %}, the first
{{ contract.shown|length }} here{% endif %}. Each as the model sees it, with what each form says.</p>
<div class="images">
{% for one in contract.shown %}
<figure><img src="{{ one.uri }}" alt="{{ one.what }}"><figcaption>{{ one.what }}</figcaption>
<table>{% for form, says in one.answers %}<tr><th scope="row">{{ form }}</th><td>{{ says }}</td></tr>{% endfor %}</table>
</figure>
{% endfor %}
</div>
{% else %}
<p>There is none.</p>
{% endif %}
{% endblock %}
"""
