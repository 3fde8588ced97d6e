"""The tabs under the answers: each is a plot with its sentence, and buttons to take it away."""

from __future__ import annotations

from dataclasses import dataclass

import gradio as gr

from vtw_demo.comparison.calibration import DEFAULT_THRESHOLD, Calibration
from vtw_demo.comparison.repeated_timing import MAXIMUM_ROUNDS
from vtw_demo.page.lines import reading_line
from vtw_demo.page.model_tab import ModelTab, lay_out_model_tab
from vtw_demo.page.token_strip import token_strip
from vtw_demo.plots.glossary import term
from vtw_demo.plots.tab import SURFACES

ATTENTION, WHERE_IT_LOOKS, MIGRATION, STAIRCASE, TIMING, CHOOSE_K, WORDS, EVERY_K, DIFFERENCES, HISTORY, TAKE_AWAY = (
    "attention", "where-it-looks", "migration", "staircase", "timing", "choose-k", "word-by-word", "every-k",
    "differences", "history", "take-away",
)  # fmt: skip
MEMORY_NOTE = "Peak memory is measured on GPUs only: this model runs on a CPU."
NOTHING_YET = "Shown once a question has been answered."
TWO_NEEDED = "Two comparisons of yours are overlaid here: choose two."


@dataclass(frozen=True)
class Section:
    """A tab. `drawn` holds its plot: a figure, or HTML. `png`, `html` and `csv` are the buttons that take it away;
    what is text has no PNG."""

    name: str
    tab: gr.Tab
    reading: gr.HTML
    drawn: gr.Plot | gr.HTML
    png: gr.Button | None
    html: gr.Button
    csv: gr.Button


@dataclass(frozen=True)
class Sections:
    """All tabs, and the controls in them. `model` is None where no other can be chosen."""

    tabs: gr.Tabs
    plotted: tuple[Section, ...]
    attention_strip: gr.HTML
    map_strip: gr.HTML
    surface: gr.Radio
    rounds: gr.Number
    time_again: gr.Button
    threshold: gr.Number
    answer_all: gr.Button
    first_layer: gr.Number
    last_layer: gr.Number
    answers_table: gr.HTML
    history: gr.Tab
    history_table: gr.HTML
    first_past: gr.Dropdown
    second_past: gr.Dropdown
    overlay: gr.Plot
    overlay_reading: gr.HTML
    link: gr.Textbox
    report: gr.Button
    data: gr.Button
    tables: gr.Button
    model: ModelTab | None

    def named(self, name: str) -> Section:
        return next(section for section in self.plotted if section.name == name)


def lay_out_sections(
    layers: int, calibration: Calibration | None, on_cpu: bool, switchable_from: str | None
) -> Sections:
    """Make the tabs, inside a `gr.Blocks`. `switchable_from`: the model that is loaded, if another can be chosen."""
    threshold_value = DEFAULT_THRESHOLD if calibration is None else calibration.threshold
    with gr.Tabs(elem_id="tabs") as tabs:
        with gr.Tab("Attention", id=ATTENTION) as tab:
            attention_strip = token_strip("attention-strip")
            attention = _section(ATTENTION, tab)
        with gr.Tab("Where it looks", id=WHERE_IT_LOOKS) as tab:
            map_strip = token_strip("map-strip")
            where_it_looks = _section(WHERE_IT_LOOKS, tab, is_html=True)
        with gr.Tab("Migration", id=MIGRATION) as tab:
            migration = _section(MIGRATION, tab)
        with gr.Tab("Staircase", id=STAIRCASE) as tab:
            surface = gr.Radio(
                list(SURFACES), value=SURFACES[0], label="Its surface", container=False, elem_id="surface"
            )
            stairs = _section(STAIRCASE, tab)
        with gr.Tab("Timing", id=TIMING) as tab:
            with gr.Row(elem_classes="controls"):
                rounds = gr.Number(
                    10, label="rounds", precision=0, minimum=1, maximum=MAXIMUM_ROUNDS, min_width=80, elem_id="rounds"
                )
                time_again = gr.Button("Measure again", size="sm", min_width=120, elem_id="time-again")
            timing = _section(TIMING, tab)
            if on_cpu:
                gr.HTML(f'<p class="note">{MEMORY_NOTE}</p>', padding=False)
        with gr.Tab("Choose K", id=CHOOSE_K) as tab:
            with gr.Row(elem_classes="controls"):
                gr.HTML(
                    f'<p class="note">“Choose K for me” takes the first layer whose mean {term("KL divergence")} on '
                    "a few samples is at most</p>",
                    padding=False,
                )
                threshold = gr.Number(
                    threshold_value, show_label=False, container=False, minimum=0, min_width=90, elem_id="threshold"
                )
            divergence = _section(CHOOSE_K, tab)
        with gr.Tab("Word by word", id=WORDS) as tab:
            words = _section(WORDS, tab)
        with gr.Tab("Every K", id=EVERY_K) as tab:
            with gr.Row(elem_classes="controls"):
                first_layer = gr.Number(1, label="from K", precision=0, min_width=80, elem_id="first-layer")
                last_layer = gr.Number(layers - 1, label="to K", precision=0, min_width=80, elem_id="last-layer")
                answer_all = gr.Button("Answer at every K", size="sm", min_width=140, elem_id="answer-all")
            answers_table = gr.HTML(padding=False, elem_id="answers-table")
            every_k = _section(EVERY_K, tab, said="Both the answers and their times, for every K of the range.")
        with gr.Tab("Differences", id=DIFFERENCES) as tab:
            differences = _section(DIFFERENCES, tab, is_html=True)
        with gr.Tab("History", id=HISTORY) as history:
            history_table = gr.HTML(padding=False, elem_id="history-table")
            with gr.Row(elem_classes="controls"):
                first_past = gr.Dropdown([], label="Overlay", min_width=200, elem_id="first-past")
                second_past = gr.Dropdown([], label="with", min_width=200, elem_id="second-past")
            overlay_reading = gr.HTML(reading_line(TWO_NEEDED), padding=False, elem_id="overlay-reading")
            overlay = gr.Plot(show_label=False, container=False, elem_id="overlay")
        with gr.Tab("Take away", id=TAKE_AWAY):
            link = gr.Textbox(
                label="A link to this picture, question, K and model",
                info="Of your own picture a link has the question and K only: it isn't kept on the server.",
                interactive=False,
                buttons=["copy"],
                elem_id="link",
            )
            with gr.Row():
                report = gr.Button("Report: one HTML file that opens offline", size="sm", elem_id="take-report")
                data = gr.Button("All of it as JSON", size="sm", elem_id="take-data")
                tables = gr.Button("All numbers as CSV, in a ZIP file", size="sm", elem_id="take-tables")
            gr.HTML(
                '<p class="note">Each tab has buttons for its own plot: PNG, interactive HTML, CSV. What hasn’t '
                "been looked at yet is measured first.</p>",
                padding=False,
            )
        model = None if switchable_from is None else lay_out_model_tab(switchable_from)
    return Sections(
        tabs=tabs,
        plotted=(
            *(attention, where_it_looks, migration, stairs, timing),
            *(divergence, words, every_k, differences),
        ),
        attention_strip=attention_strip,
        map_strip=map_strip,
        surface=surface,
        rounds=rounds,
        time_again=time_again,
        threshold=threshold,
        answer_all=answer_all,
        first_layer=first_layer,
        last_layer=last_layer,
        answers_table=answers_table,
        history=history,
        history_table=history_table,
        first_past=first_past,
        second_past=second_past,
        overlay=overlay,
        overlay_reading=overlay_reading,
        link=link,
        report=report,
        data=data,
        tables=tables,
        model=model,
    )


def _section(name: str, tab: gr.Tab, is_html: bool = False, said: str = NOTHING_YET) -> Section:
    with gr.Row(elem_classes="section-head"):
        reading = gr.HTML(reading_line(said), padding=False, elem_id=f"{name}-reading")
        with gr.Row(elem_classes="take"):
            png, html, csv = (
                None
                if (kind, name) == ("PNG", DIFFERENCES)
                else gr.Button(kind, size="sm", min_width=50, elem_id=f"{name}-{kind.lower()}")
                for kind in ("PNG", "HTML", "CSV")
            )
    assert html is not None
    assert csv is not None
    drawn = (
        gr.HTML(padding=False, elem_id=name) if is_html else gr.Plot(show_label=False, container=False, elem_id=name)
    )
    return Section(name, tab, reading, drawn, png, html, csv)
