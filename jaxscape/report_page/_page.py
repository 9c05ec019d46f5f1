"""The page: headings, verdicts, tables and pictures as plain HTML that is read without scripts."""

import html as markup
import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from jaxscape.export._files import optional
from jaxscape.export._page import CONFIG, POLICY, attr_rows
from jaxscape.report_page._content import Content
from jaxscape.report_page._line import Line
from jaxscape.report_page._pictures import PATH, Picture, curves, lines, spectra, surfaces

_SIGNS = {"good": "✓", "look": "!", "unknown": "?"}
_SECTIONS = (
    ("Training", "Loss and error over the epochs.", curves),
    ("Lines", "The loss along one direction.", lines),
)
_STYLE = """
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 90rem; font: 1rem/1.45 system-ui, sans-serif; color: #222;
  background: #fff; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin: 0 0 .3rem; } h2 { font-size: 1.2rem; margin: 2rem 0 .3rem; }
h3 { font-size: 1rem; margin: 0 0 .5rem; } p { margin: .3rem 0; }
nav a { margin-right: 1rem; } a { color: #0050a0; }
.runs { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); }
.runs > * { min-width: 0; margin: 0; border: 1px solid #ccc; border-radius: .3rem; padding: .7rem; }
figure .plot { height: 24rem; } figcaption { font-weight: 600; } .note, details p { color: #555; font-size: .875rem; }
.lines { list-style: none; margin: 0; padding: 0; columns: 26rem; column-gap: 2rem; }
.lines li { padding: .5rem 0; border-top: 1px solid #ddd; break-inside: avoid; }
.judgement { float: right; margin-left: .5rem; padding: 0 .5rem; border-radius: 1rem; font-size: .875rem;
  font-weight: 600; border: 1px solid; }
.good { color: #00507a; background: #e3f1fa; } .look { color: #7a3300; background: #fdeadb; }
.unknown { color: #444; background: #eee; }
code { font-size: .875rem; background: #f4f4f4; } summary { cursor: pointer; color: #444; font-size: .875rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .875rem; }
th, td { text-align: left; padding: .15rem .8rem .15rem 0; vertical-align: top; } thead th { border-bottom: 1px solid; }
.measures th, .measures td { white-space: nowrap; }
@media print { .switch, nav { display: none; } .runs { display: block; } .runs > * { margin: 0 0 1rem; }
  figure, li { break-inside: avoid; } h2, section > p { break-after: avoid; } body { padding: 0; } }
"""
_CONFIG = {**CONFIG, "modeBarButtonsToRemove": ["select2d", "lasso2d", "zoomIn2d", "zoomOut2d", "autoScale2d",
                                                "orbitRotation", "resetCameraLastSave3d"]}  # fmt: skip
# Pictures are drawn when the whole page is laid out: before, a grid of cards has not found its widths. On paper they
# have a width that a page of A4 or Letter holds.
_SCRIPT = """
document.querySelectorAll(".plot").forEach(function (plot) {
  var figure = JSON.parse(document.getElementById(plot.id + "-data").textContent);
  Plotly.newPlot(plot, figure.data, figure.layout, CONFIG);
});
function resize(change) { document.querySelectorAll(".plot").forEach(function (p) { Plotly.relayout(p, change); }); }
window.addEventListener("beforeprint", function () { resize({ width: 620, autosize: false }); });
window.addEventListener("afterprint", function () { resize({ width: null, autosize: true }); });
document.querySelectorAll(".switch input").forEach(function (box) {
  box.addEventListener("change", function () {
    document.querySelectorAll(".plot").forEach(function (plot) {
      var found = [];
      (plot.data || []).forEach(function (trace, i) { if (trace.meta === "PATH") { found.push(i); } });
      if (found.length) { Plotly.restyle(plot, { visible: box.checked }, found); }
    });
  });
});
""".replace("PATH", PATH).replace("CONFIG", json.dumps(_CONFIG))
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title>
<style>{style}</style>
<script>{plotly}</script>
</head>
<body>
<header><h1>{title}</h1>
<p>Pictures of one kind have the same scale for all runs. A command under a line measures what is missing.</p>
<noscript><p><strong>Scripts are off: the pictures are not drawn. All numbers below can be read.</strong></p></noscript>
<nav aria-label="Sections">{links}</nav></header>
<main>
{sections}
</main>
<script>{script}</script>
</body>
</html>
"""


def page(title: str, runs: list[Content], verdicts: list[list[Line]], clip: float | None) -> str:
    """The whole page.

    Args:
        title: Its title.
        runs: What it shows.
        verdicts: The lines of each run.
        clip: The largest height of surfaces.

    Returns:
        HTML.
    """
    numbers = iter(range(10**6))
    parts = [
        ("Verdict", "Can these numbers be trusted? Each line is computed from the results.", _verdicts(runs, verdicts)),
        *((name, told, _pictures(draw(runs), numbers)) for name, told, draw in _SECTIONS),
        ("Surface", _SURFACE, _pictures(surfaces(runs, "surface", "loss", clip), numbers)),
        ("Trajectory", _TRAJECTORY, _switched(_pictures(surfaces(runs, "trajectory", "loss", clip), numbers))),
        ("Eigenvalues", _EIGENVALUES, _pictures(surfaces(runs, "hessian", "ratio", None), numbers)),
        ("Spectrum", "The density of all eigenvalues at the center.", _pictures(spectra(runs), numbers)),
        ("Sharpness", "Value and standard error of each measure.", _sharpness(runs)),
        ("How it was made", "What is recorded of each call.", _made(runs)),
    ]
    shown = [(name, told, content) for name, told, content in parts if content]
    return _PAGE.format(
        policy=POLICY,
        title=markup.escape(title),
        style=_STYLE,
        plotly=optional("plotly.offline").get_plotlyjs(),
        links=" ".join(f'<a href="#{_id(name)}">{name}</a>' for name, *_ in shown),
        sections="\n".join(map(_section, shown)),
        script=_SCRIPT,
    )


_SURFACE = "The loss over a plane through the trained parameters."
_TRAJECTORY = (
    "The path of training, and the loss over the plane that it is drawn in: not the plane of the surface above."
)
_EIGENVALUES = "Where the ratio of the smallest to the largest eigenvalue is near 0, the loss is nearly convex."


def _section(part: tuple[str, str, str]) -> str:
    name, told, content = part
    return f'<section id="{_id(name)}"><h2>{name}</h2><p>{told}</p>\n{content}</section>'


def _id(name: str) -> str:
    return name.lower().replace(" ", "-")


def _grid(cards: Iterable[str]) -> str:
    joined = "\n".join(cards)
    return f'<div class="runs">{joined}</div>' if joined else ""


def _pictures(pictures: list[Picture], numbers: Any) -> str:
    return _grid(_picture(picture, next(numbers)) for picture in pictures)


def _picture(picture: Picture, number: int) -> str:
    drawn = ""
    if picture.figure is not None:
        name, data = f"picture{number}", picture.figure.to_json().replace("<", "\\u003c")
        drawn = f'<div class="plot" id="{name}"></div><script type="application/json" id="{name}-data">{data}</script>'
    note = f'<p class="note">{markup.escape(picture.note)}</p>' if picture.note else ""
    return f"<figure><figcaption>{markup.escape(picture.title)}</figcaption>{drawn}{note}</figure>"


def _switched(pictures: str) -> str:
    box = '<p class="switch"><label><input type="checkbox" checked> Show the path of training</label></p>'
    return box + pictures if f'"meta":"{PATH}"' in pictures else pictures


def _verdicts(runs: list[Content], verdicts: list[list[Line]]) -> str:
    cards = []
    for run, told in zip(runs, verdicts, strict=True):
        rows = "\n".join(map(_line, told))
        cards.append(f'<article><h3>{markup.escape(run.title)}</h3><ul class="lines">{rows}</ul></article>')
    return _grid(cards)


def _line(line: Line) -> str:
    question, answer, formula, cure = map(markup.escape, (line.question, line.answer, line.formula, line.cure))
    value = "" if line.value is None else f' data-value="{line.value!r}"'
    judgement = f'<span class="judgement {line.judgement}">{_SIGNS[line.judgement]} {line.judgement}</span>'
    cure = f"Try: <code>{cure}</code>" if cure.startswith("jaxscape ") else cure
    cure = f'<br><span class="note">{cure}</span>' if cure else ""
    return (
        f'<li data-line="{line.name}" data-judgement="{line.judgement}"{value}>{judgement}<strong>{question}</strong>'
        f"<br>{answer}{cure}<details><summary>How it is measured</summary><p>{formula}</p></details></li>"
    )


def _sharpness(runs: list[Content]) -> str:
    tables = {run.title: run.sharpness for run in runs if run.sharpness is not None}
    if not tables:
        return ""
    measures = dict.fromkeys(str(name) for table in tables.values() for name in table.index)
    head = "".join(f'<th scope="col">{markup.escape(title)}</th>' for title in tables)
    rows = "\n".join(
        f'<tr><th scope="row">{markup.escape(name)}</th>{"".join(_cell(table, name) for table in tables.values())}</tr>'
        for name in measures
    )
    return (
        f'<div class="wide"><table class="measures"><thead><tr><th scope="col">measure</th>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _cell(table: pd.DataFrame, name: str) -> str:
    if name not in table.index:
        return "<td>not measured</td>"
    row = table.loc[name]
    stderr = float(row.get("stderr", np.nan))
    text = f"{float(row['value']):.6g}" + (f" ± {stderr:.2g}" if np.isfinite(stderr) else "")
    note = row.get("note")
    told = f" ({note})" if isinstance(note, str) and note else ""
    return f"<td>{markup.escape(text + told)}</td>"


def _made(runs: list[Content]) -> str:
    cards = []
    for run in runs:
        attrs = {name: result.attrs for name, result in run.results.items()}
        if run.sharpness is not None and run.sharpness.attrs:  # a file has the table alone
            attrs["sharpness"] = run.sharpness.attrs
        tables = [
            f"<details><summary>{markup.escape(name)}</summary><table>{attr_rows(each)}</table></details>"
            for name, each in attrs.items()
        ]
        left_out = [f'<p class="note">{markup.escape(text)}</p>' for text in run.left_out]
        content = "\n".join([*tables, *left_out]) or "<p>No results.</p>"
        cards.append(f"<article><h3>{markup.escape(run.title)}</h3>{content}</article>")
    return _grid(cards)
