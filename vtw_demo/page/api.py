"""What programs can ask, over HTTP and MCP. They are shown the names, the parameters and the texts of api.toml."""

import tomllib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import wraps
from typing import Any

import gradio as gr

from vtw_demo.comparison.analysis import Analysis, all_parts
from vtw_demo.comparison.machine import this_machine
from vtw_demo.errors import UserError
from vtw_demo.page.html import asset
from vtw_demo.plots.report import report_data
from vtw_demo.server.access import caller
from vtw_demo.server.engine import STOPPED, Engine
from vtw_demo.server.query import Query, read_beside
from vtw_demo.server.queue import StoppedError
from vtw_demo.server.uploads import Uploads


def connect_api(engine: Engine, uploads: Uploads) -> None:
    """Offer the functions of the API, inside a `gr.Blocks` whose `uploads` hold what is sent."""

    def in_sentences(answer: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
        """What goes wrong is told in one sentence to programs, too."""

        @wraps(answer)
        def said(*values: Any) -> dict[str, Any]:
            try:
                return answer(*values)
            except StoppedError:
                sentence = STOPPED
            except Exception as error:
                sentence = engine.monitoring.fault_of(error).sentence
            raise gr.Error(sentence, print_exception=False)  # here nothing hangs on what was raised any more

        return said

    def compared(image: Any, question: Any, layer: Any, cap: Any, detail: Any, beside: Any) -> tuple[Analysis, str]:
        """The runs, and what is to be said of the picture."""
        (session, stop), vlm = caller(), engine.vlm.at_detail(detail or engine.vlm.picture_detail)
        file = uploads.received(image)
        uploads.claim(session, file["path"])
        query = replace(
            Query.read(file, question, layer, cap, vlm.sampling), detail=vlm.detail, beside=read_beside(beside)
        )
        return engine.compare_to_end(session, vlm, query, stop), query.note

    @in_sentences
    def compare(
        image: gr.FileData,
        question: str,
        layer: int,
        max_new_tokens: int,
        picture_detail: str = "",
        beside: str = "",
    ) -> dict[str, Any]:
        analysis, note = compared(image, question, layer, max_new_tokens, picture_detail, beside)
        return {"verdict": analysis.verdict, **analysis.comparison.to_json(), "note": note}

    @in_sentences
    def examine(
        image: gr.FileData,
        question: str,
        layer: int,
        max_new_tokens: int,
        picture_detail: str = "",
        beside: str = "",
    ) -> dict[str, Any]:
        session, stop = caller()
        analysis, note = compared(image, question, layer, max_new_tokens, picture_detail, beside)
        for part in all_parts(analysis.comparison):
            with suppress(UserError):  # a part that this model's can't be known of: the data say so themselves
                for _ in engine.measure(session, analysis, part, stop, follows=True):
                    pass
        return {**report_data(analysis, engine.calibration(analysis.vlm), this_machine()), "note": note}

    texts = tomllib.loads(asset("api.toml"))
    for function in (compare, examine):
        function.__doc__ = texts["functions"][function.__name__].format(arguments=texts["arguments"])
        gr.api(function, api_name=function.__name__, concurrency_limit=None)
