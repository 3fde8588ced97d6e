"""One HTML file with the whole comparison, which opens offline: nothing in it is fetched."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from vtw_demo.comparison.analysis import Analysis
from vtw_demo.comparison.calibration import Calibration
from vtw_demo.comparison.machine import Machine
from vtw_demo.models.video import contact_sheet
from vtw_demo.plots.answer_cards import answer_cards, verdict_html
from vtw_demo.plots.attention_map import ATTENTION_MAP_SCRIPT
from vtw_demo.plots.glossary import WHAT_AM_I_LOOKING_AT
from vtw_demo.plots.images import data_uri, image_uri, thumbnail
from vtw_demo.plots.tab import Plot, View
from vtw_demo.plots.tabs import GROUPS, all_plots
from vtw_demo.plots.templates import TEMPLATES

FOLDER = Path(__file__).parent
PLOTS_CSS = "\n".join(
    (FOLDER / f"{name}.css").read_text(encoding="utf-8")
    for name in ("plots", "attention_map", "differences", "glossary")
)
LONGEST_SIDE = 640


def report_data(analysis: Analysis, calibration: Calibration | None, machine: Machine) -> dict[str, Any]:
    """All numbers that the report shows, for `json.dumps`; what isn't measured yet is measured."""
    return {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine.to_json(),
        **analysis.to_json(),
        "calibration": None if calibration is None else calibration.to_json(),
    }


def report_html(analysis: Analysis, calibration: Calibration | None, machine: Machine) -> str:
    """The comparison with all its plots and numbers, versions and machine; what isn't measured yet is measured."""
    comparison = analysis.comparison
    plots, missing = all_plots(analysis, View(calibration))
    data = report_data(analysis, calibration, machine)
    return _document(
        "report.html",
        comparison.question,
        plots,
        picture=image_uri(thumbnail(contact_sheet(analysis.prompt.shown), LONGEST_SIDE), "png"),
        verdict=verdict_html(analysis),
        comparison=comparison,
        calibration=calibration,
        made=data["made"],
        machine=machine,
        cards=answer_cards(analysis),
        missing=missing,
        glossary=WHAT_AM_I_LOOKING_AT,
        data=json.dumps(data),
    )


def plot_html(plot: Plot) -> str:
    """One plot with its sentence and its numbers, as an HTML file that opens offline."""
    return _document("document.html", plot.title, (plot,))


def _document(template: str, title: str, plots: Sequence[Plot], **more: Any) -> str:
    css = (FOLDER / "report.css").read_text(encoding="utf-8") + PLOTS_CSS
    scripts = {"plotly": get_plotlyjs(), "script": ATTENTION_MAP_SCRIPT}
    functions = {"drawn": _drawn, "data_uri": data_uri}
    document = TEMPLATES.get_template(template)
    return document.render(title=title, plots=plots, groups=GROUPS, css=css, **scripts, **functions, **more)


def _drawn(plot: Plot) -> str:
    if isinstance(plot.drawing, str):
        return plot.drawing
    return plot.drawing.to_html(full_html=False, include_plotlyjs=False, config={"responsive": True})
