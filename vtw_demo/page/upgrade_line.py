"""The line under the header that says how far this machine's model is, and what follows when it is there."""

from collections.abc import Sequence
from typing import Any

import gradio as gr

from vtw_demo.models.registry import find_known_model
from vtw_demo.page.asking import chosen
from vtw_demo.page.examples import Example, restore
from vtw_demo.page.html import upgrade_line
from vtw_demo.page.page import Page, Shown
from vtw_demo.page.session import Session
from vtw_demo.server.upgrade import GOES_ON, Upgrade

# How often the page asks while it is fetched, and else.
TELL_SECONDS, LOOK_SECONDS = 1.0, 10.0
NEVER = f"Nothing is fetched, as this browser was told. {GOES_ON}"
NAMED = f"Nothing is fetched: the link names the embedded model, or one that isn't known. {GOES_ON}"


class UpgradeLine:
    """With `may_decide` a visitor's coming begins it; they can stop it, begin it again, and say never, which their
    browser keeps. Else all of it is the server's."""

    def __init__(self, page: Page, upgrade: Upgrade, examples: Sequence[Example], may_decide: bool) -> None:
        self.page = page
        self.upgrade = upgrade
        self.examples = examples
        self.may_decide = may_decide
        with page.layout.head, gr.Row(visible=False, elem_id="upgrade") as self.row:
            self.line = gr.HTML(padding=False, elem_id="upgrade-line")
            self.stop, self.never, self.begin = (
                gr.Button(label, size="sm", min_width=60, scale=0, visible=False, elem_id=f"upgrade-{name}")
                for name, label in (("stop", "Stop"), ("never", "Never"), ("begin", "Fetch it"))
            )
        self.told_never = gr.BrowserState(False, storage_key="vtw-demo-never", secret="vtw-demo")
        self.timer = gr.Timer(TELL_SECONDS)
        # Its value changes when the model that answers has: then the question is asked of it.
        self.arrived = gr.HTML("", visible="hidden", padding=False)
        self.parts = [self.row, self.line, self.stop, self.never, self.begin, self.timer]

    def connect(self, start: Any) -> None:
        """Bind the events. `start` is the page's own, when a visitor comes."""
        page, layout = self.page, self.page.layout
        page.at_once(start, self.visited, [self.told_never], self.parts)
        asked = [layout.picture, layout.clip, layout.origin, layout.question, layout.suggestions]
        seen = list(dict.fromkeys([*self.parts, *asked, *page.about_model(), self.arrived]))
        page.at_once(self.timer.tick, self.look, [layout.session, layout.origin, layout.question], seen)
        page.at_once(self.stop.click, self.stopped, None, self.parts)
        page.at_once(self.never.click, lambda: (True, *self.stopped(NEVER)), None, [self.told_never, *self.parts])
        page.at_once(self.begin.click, lambda: (False, *self.begun()), None, [self.told_never, *self.parts])
        page.run_after(self.arrived.change, page.run)

    def visited(self, never: Any, request: gr.Request) -> tuple[Any, ...]:
        """It begins, unless it was begun before, the visitor has said never, or their link names what isn't fetched."""
        named = request.query_params.get("model")
        if never is True:
            return self.shown(NEVER)
        if named is not None and find_known_model(named) is None:
            return self.shown(NAMED)
        is_new = named is not None or not self.upgrade.state.said
        return self.begun(named) if self.may_decide and is_new else self.shown()

    def begun(self, named: str | None = None) -> tuple[Any, ...]:
        self.upgrade.begin(named)
        return self.shown()

    def stopped(self, *said: str) -> tuple[Any, ...]:
        self.upgrade.stop(*said)
        return self.shown()

    def shown(self, instead: str = "") -> tuple[Any, ...]:
        """The row as it is now; `instead` is said while there is nothing to say of it."""
        state = self.upgrade.state
        can_stop, can_begin = state.is_running, not state.is_running and state.vlm is None
        return (
            gr.Row(visible=bool(state.said or instead)),
            upgrade_line(state.said or instead, state.is_running),
            *(gr.Button(visible=self.may_decide and can_stop) for _ in (self.stop, self.never)),
            gr.Button(visible=self.may_decide and can_begin),
            gr.Timer(TELL_SECONDS if state.is_running else LOOK_SECONDS),
        )

    def look(self, session: Session, origin: Any, question: Any) -> Shown:
        """How far it is. Once it is there, the page is about it, and the question is asked of it, about a photo where
        the picture was a drawn one; a question that came with that one makes way for the photo's."""
        page, layout, state = self.page, self.page.layout, self.upgrade.state
        if not state.said:
            return {self.line: gr.skip()}
        shown: Shown = dict(zip(self.parts, self.shown(), strict=True))
        if not page.is_upgraded or session.vlm is None:
            return shown
        shown[self.timer] = gr.Timer(active=False)
        vlm = page.engine.vlm
        if session.vlm is vlm:
            return shown
        session.show_model(vlm)
        link = session.link if session.link.get("model") == vlm.name else {}
        restored = restore(link, self.examples, vlm.name, vlm.layers, vlm.details)
        shown |= page.about_model(restored.layer, restored.detail)
        before = restore(origin if isinstance(origin, dict) else {}, self.examples, "", 1).example
        if before is not None and not before.is_photo:
            photo = next(example for example in self.examples if example.is_photo)
            picture, clip, where, asked, suggestions = chosen(photo)
            shown |= {layout.picture: picture, layout.clip: clip, layout.origin: where, layout.suggestions: suggestions}
            shown[layout.question] = asked if question in before.suggestions else question
            shown[self.line] = upgrade_line(f"{state.said} Here it is asked about a photo.", False)
        return shown | {self.arrived: vlm.name}
