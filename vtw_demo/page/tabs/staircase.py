"""The staircase's tab, in which one chooses what its surface shows."""

from collections.abc import Iterator

import gradio as gr

from vtw_demo.page.page import Shown
from vtw_demo.page.session import Session
from vtw_demo.page.tabs.tab import PlottedTab
from vtw_demo.plots.tab import SURFACES, Surface


class StaircaseTab(PlottedTab):
    def lay_out_controls(self) -> None:
        self.surface = gr.Radio(SURFACES, value=SURFACES[0], label="Its surface", container=False, elem_id="surface")

    def connect(self) -> None:
        super().connect()
        self.page.on_model(self.surface.input, self.choose, [self.surface], self.shown)

    def choose(self, session: Session, surface: Surface) -> Iterator[Shown]:
        session.surface = surface
        yield from self.redraw(session)
