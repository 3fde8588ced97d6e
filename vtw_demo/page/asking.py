"""What is asked, and how: the events above the tabs."""

import random
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from vtw_demo.errors import UserError
from vtw_demo.models.image import open_picture, shown_by_browsers
from vtw_demo.models.registry import starting_layer
from vtw_demo.page.examples import GENERAL_QUESTIONS, Example, restore, scene_example
from vtw_demo.page.html import problem_line
from vtw_demo.page.layout import detail_choices, layer_info
from vtw_demo.page.page import Page, Shown
from vtw_demo.page.session import Session
from vtw_demo.server.query import layer_range

# What the controls hold, told to the live line and to what dims older answers and plots.
TELL = '(...asked) => { window.dispatchEvent(new CustomEvent("controls", {detail: asked})); }'
OWN_PICTURE = "The link is to a picture of somebody's own, which isn't here: choose it, then press Run."


class Asking:
    def __init__(self, page: Page, examples: Sequence[Example]) -> None:
        self.page = page
        self.layout = layout = page.layout
        self.examples = examples
        self.chosen = [layout.picture, layout.clip, layout.origin, layout.question, layout.suggestions]

    def connect(self, start: Any) -> None:
        """Bind the events. `start` is the page's own, when a visitor comes."""
        page, layout, chosen = self.page, self.layout, self.chosen
        shown = dict.fromkeys([*page.shown, layout.note, layout.beside, *chosen])
        started = page.at_once(start, self.start, [layout.session, layout.history], list(shown))
        page.run_after(started.then, page.run)
        for changed in (started.then, layout.picture.change, layout.model.change, layout.detail.input):
            of, about = [layout.session, layout.picture, layout.detail], [layout.detail, layout.layer, layout.verdict]
            page.at_once(changed, self.about_detail, of, about, preprocess=False)
        page.run_after(layout.run.click, page.run)
        page.run_after(layout.question.submit, page.run)
        page.run_after(layout.layer.release, page.run_withdrawn)
        page.run_after(layout.beside.input, page.run_withdrawn)
        needed = page.at_once(layout.live.select, self.needed_layer, None, [layout.layer])
        page.run_after(needed.then, page.run_withdrawn)
        page.at_once(layout.stop.click, Session.halt, [layout.session], None, trigger_mode="multiple")
        told = [layout.layer.input, layout.question.input, layout.verdict.change, *(one.change for one in layout.query)]
        page.in_browser(partial(gr.on, told), TELL, layout.query)
        example = page.at_once(layout.examples.click, self.choose_example, [layout.examples], chosen)
        page.run_after(example.then, page.run)
        offered = layout.suggestions
        asked = page.at_once(offered.click, lambda sample: sample[1][0], [offered], [layout.question])
        page.run_after(asked.then, page.run)
        # Programs may ask for one, too.
        scene = page.at_once(layout.random_scene.click, self.random_scene, None, chosen, api_visibility="public")
        page.run_after(scene.then, page.run)
        own = [layout.picture.upload, layout.picture.clear, layout.clip.upload, layout.clip.clear]
        page.at_once(
            partial(gr.on, own),
            self.own_picture,
            [layout.picture, layout.clip],
            [layout.suggestions, layout.origin, layout.picture],
            preprocess=False,
            trigger_mode="always_last",
        )

    def start(self, session: Session, history: Any, request: gr.Request) -> Shown:
        """What a new visitor sees: what their link says, and the model and K as somebody may have left them."""
        layout, vlm = self.layout, self.page.engine.vlm
        link = session.link = dict(request.query_params)
        if self.page.awaits(link.get("model", "")):  # then its layer is that one's, too
            link = {name: value for name, value in link.items() if name not in ("model", "layer")}
        restored = restore(link, self.examples, vlm.name, vlm.layers, vlm.details)
        if self.page.is_upgraded and restored.example is None and not restored.is_of_own_picture:
            restored = replace(restored, example=next(example for example in self.examples if example.is_photo))
        session.show_model(vlm)
        session.restore(history)
        shown = self.page.about_model(restored.layer, restored.detail)
        for tab in self.page.tabs:
            shown |= tab.restored(session)
        if restored.example is not None:
            picture, _, origin, question, suggestions = chosen(restored.example)
            shown |= {layout.picture: picture, layout.origin: origin, layout.suggestions: suggestions}
            shown[layout.question] = question
        elif restored.is_of_own_picture:
            shown |= {layout.picture: gr.Image(None, placeholder=OWN_PICTURE), layout.origin: {}}
        if restored.beside is not None:
            shown[layout.beside] = restored.beside
        if restored.question is not None:
            shown[layout.question] = restored.question
        if restored.problems:
            shown[layout.note] = gr.HTML(problem_line(" ".join(restored.problems)), visible=True)
        return shown

    def about_detail(self, session: Session, picture: Any, detail: Any) -> Iterator[Shown]:
        """The visual tokens that each detail gives for the picture in hand, and what is known of K at this one."""
        engine, tokens = self.page.engine, None
        path = picture.get("path") if isinstance(picture, dict) else None
        with suppress(UserError, OSError):  # what can't be read is told when it is asked about
            tokens = engine.picture_tokens(path) if isinstance(path, str) else None
        vlm = engine.vlm.at_detail(detail)
        info = layer_info(vlm.layers, starting_layer(vlm), engine.calibration(vlm))
        yield {self.layout.detail: gr.update(**detail_choices(vlm, tokens)), self.layout.layer: gr.update(info=info)}

    def choose_example(self, index: int) -> tuple[Any, ...]:
        return chosen(self.examples[index])

    def needed_layer(self, clicked: gr.EventData) -> Any:
        """The K that the live line says the question needs."""
        try:
            (layer,) = layer_range(clicked.layer, clicked.layer, self.page.engine.vlm.layers)
        except (AttributeError, UserError):  # a program's, which may send anything
            return gr.skip()
        return layer

    def random_scene(self) -> tuple[Any, ...]:
        return chosen(scene_example(random.randrange(10**9)))

    def own_picture(self, picture: Any, clip: Any) -> tuple[Any, ...]:
        """The visitor's own picture or clip: of what it shows nothing is known, and no link restores it. The page is
        told of it here so that it is the session's from its upload on. Browsers show no HEIC and no TIFF: a copy."""
        shown: Any = gr.update(placeholder="")
        path = picture.get("path") if isinstance(picture, dict) else None
        try:
            if isinstance(path, str):
                opened = open_picture(path)
                shown = shown if shown_by_browsers(path) else opened
        except (UserError, OSError) as error:
            shown = gr.Image(None, placeholder=str(error))
        return _suggestions(GENERAL_QUESTIONS), {}, shown


def chosen(example: Example) -> tuple[Any, ...]:
    picture = str(example.picture) if isinstance(example.picture, Path) else example.picture
    return picture, None, example.origin, example.question, _suggestions(example.suggestions)


def _suggestions(questions: Sequence[str]) -> gr.Dataset:
    return gr.Dataset(samples=[[question] for question in questions])
