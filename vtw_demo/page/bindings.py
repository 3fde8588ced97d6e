"""Which event of which component calls what, and the API."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from vtw_demo.page.callbacks import Callbacks, Shown
from vtw_demo.page.engine import Engine
from vtw_demo.page.examples import Example
from vtw_demo.page.layout import Layout

# A function of the slider's K and the sweep's JSON, run in the browser.
LIVE_LAYER = (Path(__file__).parent / "live_layer.js").read_text(encoding="utf-8")


def connect(
    page: gr.Blocks, layout: Layout, engine: Engine, examples: Sequence[Example], first_layer: int | None
) -> None:
    """Bind the callbacks to the components, inside their page. `first_layer` is the K asked for at the start."""
    callbacks = Callbacks(layout, engine, examples, first_layer)
    query = [layout.session, layout.picture, layout.question, layout.layer, layout.max_new_tokens]
    # Whatever uses the model takes turns; what doesn't is answered at once.
    on_model: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model"}
    at_once: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    shown = [
        *(layout.header, layout.verdict, layout.full, layout.withdrawn),
        *(layout.attention, layout.attention_reading, layout.timing, layout.timing_reading),
        *(layout.swept, layout.divergence, layout.divergence_reading, layout.words, layout.words_reading),
        *(layout.layer, layout.tabs, layout.answers_table, layout.layer_times),
    ]

    def run_after(event: Any, name: str, run: Callable[..., Iterator[Shown]] = callbacks.run, *more: Any) -> None:
        """After `event`, what uses the model: `name` tells its steps apart, `more` are further inputs."""
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
            [*query, layout.attention_query, *more],
            shown,
            # Raw values: Gradio's own readers answer a broken picture with a stack trace.
            preprocess=False,
            show_progress="hidden",
            api_name=name,
            api_visibility="private",
            trigger_mode="multiple",
            **on_model,
        )

    started = page.load(callbacks.start, outputs=[layout.layer], api_name="start", **at_once)
    run_after(started.then, "run_first_example")
    run_after(layout.run.click, "run")
    run_after(layout.question.submit, "run_on_enter")
    run_after(layout.layer.release, "run_withdrawn", callbacks.run_withdrawn)
    run_after(layout.calibrate.click, "calibrate", callbacks.calibrate, layout.threshold)
    run_after(
        layout.answer_all.click, "answer_at_layers", callbacks.answer_at_layers, layout.first_layer, layout.last_layer
    )
    # In the browser alone: the slider is live while it is dragged.
    gr.on(
        [layout.layer.input, layout.layer.change, layout.swept.change, page.load],
        fn=None,
        inputs=[layout.layer, layout.swept],
        outputs=[layout.live],
        js=LIVE_LAYER,
        api_visibility="private",
    )
    layout.stop.click(callbacks.stop, [layout.session], api_name="stop", trigger_mode="multiple", **at_once)

    chosen = layout.examples.click(
        callbacks.choose_example,
        [layout.examples],
        [layout.picture, layout.question, layout.suggestions],
        api_name="choose_example",
        **at_once,
    )
    run_after(chosen.then, "run_example")
    asked = layout.suggestions.click(
        callbacks.choose_question, [layout.suggestions], [layout.question], api_name="choose_question", **at_once
    )
    run_after(asked.then, "run_suggestion")
    drawn = layout.random_scene.click(
        callbacks.random_scene,
        outputs=[layout.picture, layout.question, layout.suggestions],
        api_name="random_scene",
        queue=False,
        show_progress="hidden",
    )
    run_after(drawn.then, "run_random_scene")
    gr.on(
        [layout.picture.upload, layout.picture.clear],
        callbacks.general_questions,
        outputs=[layout.suggestions],
        api_name="general_questions",
        **at_once,
    )
    layout.attention_query.input(
        callbacks.show_attention,
        [layout.session, layout.attention_query],
        [layout.attention, layout.attention_reading],
        api_name="show_attention",
        **at_once,
    )
    gr.api(callbacks.compare, api_name="compare", **on_model)
