"""One HTML file with the whole comparison, which opens offline: nothing in it is fetched."""

import json
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from vtw_demo.comparison.analysis import Analysis
from vtw_demo.comparison.calibration import Calibration
from vtw_demo.comparison.compare import RunName
from vtw_demo.comparison.machine import Machine
from vtw_demo.comparison.summary import verdict
from vtw_demo.comparison.timed_generate import Run
from vtw_demo.models.video import contact_sheet
from vtw_demo.plots.answer_cards import AnswerCard
from vtw_demo.plots.attention_map import ATTENTION_MAP_SCRIPT
from vtw_demo.plots.glossary import WHAT_AM_I_LOOKING_AT
from vtw_demo.plots.images import data_uri, image_uri, thumbnail
from vtw_demo.plots.tab import Plot, View
from vtw_demo.plots.tabs import all_plots

FOLDER = Path(__file__).parent
# Shared with the page.
PLOTS_CSS = "\n".join(
    (FOLDER / f"{name}.css").read_text(encoding="utf-8")
    for name in ("plots", "attention_map", "differences", "glossary")
)
LONGEST_SIDE = 640
# Whatever a text in the report says, a browser fetches nothing for it.
POLICY = "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def report_data(analysis: Analysis, calibration: Calibration | None, machine: Machine) -> dict[str, Any]:
    """All numbers that the report shows, for `json.dumps`, with the machine that they are from. What isn't measured yet
    is measured."""
    return {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine.to_json(),
        **analysis.to_json(),
        "calibration": None if calibration is None else calibration.to_json(),
    }


def report_html(analysis: Analysis, calibration: Calibration | None, machine: Machine) -> str:
    """The comparison with picture, question, answers, settings, every plot with its numbers, versions and machine.

    What isn't measured yet is measured.
    """
    comparison = analysis.comparison
    plots, missing = all_plots(analysis, View(calibration))
    data = report_data(analysis, calibration, machine)
    settings = [
        ("Model", f"{comparison.model}, {comparison.precision}, on {comparison.device}"),
        ("Withdrawal layer", f"{comparison.layer} of {comparison.layers}"),
        ("Prompt", f"{comparison.visual_tokens} visual tokens, {comparison.text_tokens} text tokens"),
        ("Calibration", "none" if calibration is None else calibration.sentence()),
        ("Made", str(data["made"])),
        ("Machine", str(machine)),
        ("Versions", ", ".join(f"{name} {version}" for name, version in machine.versions.items())),
    ]
    results: dict[RunName, Run] = {"full": comparison.full, "withdrawn": comparison.withdrawn}
    cards = "".join(AnswerCard(run, comparison.layer, result=result).to_html() for run, result in results.items())
    rows = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in settings)
    sections = "".join(_section(plot) for plot in plots)
    picture = image_uri(thumbnail(contact_sheet(analysis.prompt.shown), LONGEST_SIDE), "png")
    absent = "".join(f"<p>{escape(sentence)}</p>" for sentence in missing)
    return _document(
        f"{comparison.question} – VTW Demo",
        "<h1>VTW Demo: one question, answered twice</h1>"
        f'<div class="query"><img src="{picture}" alt="The picture of the question">'
        f'<div><p class="question">{escape(comparison.question)}</p>'
        f'<p class="verdict">{escape(verdict(comparison))}</p><dl class="settings">{rows}</dl></div></div>'
        f'<div class="answers">{cards}</div>{sections}{absent}'
        f"<details><summary>What am I looking at?</summary>{WHAT_AM_I_LOOKING_AT}</details>"
        f"<p>{_download('comparison.json', 'application/json', json.dumps(data), 'All of it as JSON')}</p>",
    )


def plot_html(plot: Plot) -> str:
    """One plot with its sentence and its numbers, as an HTML file that opens offline."""
    return _document(f"{plot.title} – VTW Demo", _section(plot))


def _document(title: str, content: str) -> str:
    css = (FOLDER / "report.css").read_text(encoding="utf-8") + PLOTS_CSS
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><style>{css}</style>'
        f"<script>{get_plotlyjs()}</script></head><body><main>{content}</main>"
        f"<script>{ATTENTION_MAP_SCRIPT}</script></body></html>"
    )


def _section(plot: Plot) -> str:
    drawn = plot.drawing
    if not isinstance(drawn, str):
        drawn = drawn.to_html(full_html=False, include_plotlyjs=False, config={"responsive": True})
    numbers = _download(f"{plot.name}.csv", "text/csv", plot.table().to_csv(), "Numbers as CSV")
    return (
        f'<section id="{escape(plot.name)}"><h2>{escape(plot.title)}</h2><p class="reading">{escape(plot.reading)}</p>'
        f'<div class="plot">{drawn}</div><p>{numbers}</p></section>'
    )


def _download(name: str, kind: str, content: str, shown: str) -> str:
    return f'<a download="{escape(name)}" href="{data_uri(content.encode(), kind)}">{escape(shown)}</a>'
