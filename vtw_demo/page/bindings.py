"""Which event of which component calls what, and the API."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from vtw_demo.comparison.machine import this_machine
from vtw_demo.page.callbacks import Callbacks
from vtw_demo.page.examples import Example
from vtw_demo.page.layout import Layout
from vtw_demo.page.sections import WHERE_IT_LOOKS
from vtw_demo.page.sentences import Shown
from vtw_demo.page.take_away import TakeAway
from vtw_demo.server.engine import Engine
from vtw_demo.server.switching import Switching


def _script(name: str) -> str:
    """A function that runs in the browser alone."""
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


# How soon a visitor hears that another one has switched the model.
LOOK_SECONDS = 5


def connect(
    page: gr.Blocks,
    layout: Layout,
    engine: Engine,
    examples: Sequence[Example],
    first_layer: int | None,
    switching: Switching | None,
) -> None:
    """Bind the callbacks to the components, inside their page. `first_layer` is the K asked for at the start."""
    callbacks, sections = Callbacks(layout, engine, examples, first_layer, switching), layout.sections
    take_away = TakeAway(layout, engine, this_machine())
    query = [
        *(layout.session, layout.picture, layout.clip, layout.question, layout.layer, layout.max_new_tokens),
    ]
    # Whatever uses the model takes turns, in the engine's queue and not in Gradio's; what doesn't is answered at once.
    on_model: dict[str, Any] = {
        "concurrency_limit": None,
        "show_progress": "hidden",
        "api_visibility": "private",
        "trigger_mode": "multiple",
    }
    at_once: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    drawn = [part for section in sections.plotted for part in (section.reading, section.drawn)]
    strips = [sections.attention_strip, sections.map_strip]
    of_model = [layout.header, layout.model, layout.clip, layout.layer, layout.swept, sections.last_layer, layout.note]
    shown = [
        *of_model,
        *(layout.verdict, layout.full, layout.withdrawn),
        *(sections.tabs, sections.answers_table, sections.history_table, sections.first_past, sections.second_past),
        *(*drawn, *strips),
    ]

    def run_after(event: Any, name: str, run: Callable[..., Iterator[Shown]] = callbacks.run, *more: Any) -> None:
        """After `event`, what runs the model: `name` tells its steps apart, `more` are further inputs."""
        begun = event(
            callbacks.begin,
            [layout.session],
            [layout.verdict],
            api_name=f"begin_{name}",
            trigger_mode="multiple",
            **at_once,
        )
        begun.then(
            run,
            [*query, *more],
            shown,
            # Raw values: Gradio's own readers answer a broken picture with a stack trace.
            preprocess=False,
            api_name=name,
            **on_model,
        )

    started = page.load(
        callbacks.start,
        [layout.session],
        [*of_model, layout.picture, layout.origin, layout.question, layout.suggestions],
        api_name="start",
        **at_once,
    )
    run_after(started.then, "run_first_example")
    run_after(layout.run.click, "run")
    run_after(layout.question.submit, "run_on_enter")
    run_after(layout.layer.release, "run_withdrawn", callbacks.run_withdrawn)
    run_after(layout.calibrate.click, "calibrate", callbacks.calibrate, sections.threshold)
    run_after(sections.time_again.click, "time_again", callbacks.time_again, sections.rounds)
    run_after(
        sections.answer_all.click,
        "answer_at_layers",
        callbacks.answer_at_layers,
        sections.first_layer,
        sections.last_layer,
    )
    layout.stop.click(callbacks.stop, [layout.session], api_name="stop", trigger_mode="multiple", **at_once)
    # In the browser alone: the slider is live while it is dragged.
    gr.on(
        [layout.layer.input, layout.layer.change, layout.swept.change, page.load],
        fn=None,
        inputs=[layout.layer, layout.swept],
        outputs=[layout.live],
        js=_script("live_layer.js"),
        api_visibility="private",
    )

    chosen = layout.examples.click(
        callbacks.choose_example,
        [layout.examples],
        [layout.picture, layout.clip, layout.origin, layout.question, layout.suggestions],
        api_name="choose_example",
        **at_once,
    )
    run_after(chosen.then, "run_example")
    asked = layout.suggestions.click(
        callbacks.choose_question, [layout.suggestions], [layout.question], api_name="choose_question", **at_once
    )
    run_after(asked.then, "run_suggestion")
    scene = layout.random_scene.click(
        callbacks.random_scene,
        outputs=[layout.picture, layout.clip, layout.origin, layout.question, layout.suggestions],
        api_name="random_scene",
        queue=False,
        show_progress="hidden",
    )
    run_after(scene.then, "run_random_scene")
    gr.on(
        [layout.picture.upload, layout.picture.clear, layout.clip.upload, layout.clip.clear],
        callbacks.own_picture,
        [layout.picture, layout.clip],
        outputs=[layout.suggestions, layout.origin],
        preprocess=False,
        api_name="own_picture",
        **at_once,
    )

    for section in sections.plotted:
        opened = section.tab.select(
            partial(callbacks.open, name=section.name),
            [layout.session],
            [section.reading],
            api_name=f"open_{section.name}",
            **at_once,
        )
        opened.then(callbacks.draw, [layout.session], [*drawn, *strips, layout.verdict], api_name="draw", **on_model)
        for button, take in ((section.html, take_away.plot_html), (section.csv, take_away.plot_csv)):
            taken = button.click(
                partial(take, name=section.name),
                [layout.session],
                [layout.file, layout.verdict],
                api_name=f"{take.__name__}_{section.name}",
                **at_once,
            )
            taken.then(fn=None, inputs=[layout.file], js=_script("download.js"), api_visibility="private")
        if section.png is not None and section.name != WHERE_IT_LOOKS:
            section.png.click(
                fn=None, js=_script("plot_png.js").replace("NAME", section.name), api_visibility="private"
            )
    map_png = sections.named(WHERE_IT_LOOKS).png
    assert map_png is not None
    for button, make in (
        (sections.report, take_away.report),
        (sections.data, take_away.data),
        (sections.tables, take_away.tables),
        (map_png, take_away.map_png),
    ):
        taken = button.click(
            make, [layout.session], [layout.file, layout.verdict], api_name=f"take_{make.__name__}", **on_model
        )
        taken.then(fn=None, inputs=[layout.file], js=_script("download.js"), api_visibility="private")

    section_shown = [*drawn, *strips, layout.verdict]
    strip_event: dict[str, Any] = {"outputs": section_shown, **on_model}
    sections.attention_strip.select(
        callbacks.choose_attention, [layout.session], api_name="choose_attention", **strip_event
    )
    sections.map_strip.select(callbacks.choose_map, [layout.session], api_name="choose_map", **strip_event)
    sections.surface.input(
        callbacks.choose_surface, [layout.session, sections.surface], api_name="choose_surface", **strip_event
    )
    gr.on(
        [sections.first_past.change, sections.second_past.change, sections.history.select],
        callbacks.overlay,
        [layout.session, sections.first_past, sections.second_past],
        [sections.overlay, sections.overlay_reading],
        api_name="overlay",
        **at_once,
    )
    # The link, in the browser alone.
    gr.on(
        [layout.verdict.change],
        fn=None,
        inputs=[layout.model, layout.origin, layout.question, layout.layer],
        outputs=[sections.link],
        js=_script("link.js"),
        api_visibility="private",
    )
    if sections.model is not None:
        tab = sections.model
        run_after(tab.load.click, "switch_model", callbacks.switch, tab.name, tab.quantization)
        tab.name.change(
            callbacks.model_facts, [tab.name], [tab.facts], preprocess=False, api_name="model_facts", **at_once
        )
        gr.Timer(LOOK_SECONDS).tick(callbacks.look, [layout.session], of_model, api_name="look", **at_once)
    gr.api(callbacks.compare, api_name="compare", concurrency_limit=None)
    gr.api(callbacks.examine, api_name="examine", concurrency_limit=None)
