"""What programs can ask, over HTTP and MCP. Names, parameters and docstrings are what they are shown."""

from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from typing import Any

import gradio as gr

from vtw_demo.comparison.analysis import ALL_PARTS, Analysis
from vtw_demo.comparison.machine import this_machine
from vtw_demo.errors import UserError
from vtw_demo.plots.report import report_data
from vtw_demo.server.access import caller
from vtw_demo.server.engine import STOPPED, Engine
from vtw_demo.server.query import Query
from vtw_demo.server.queue import StoppedError
from vtw_demo.server.uploads import Uploads

Answer = Callable[..., dict[str, Any]]


def connect_api(engine: Engine, uploads: Uploads) -> None:
    """Offer the functions of the API, inside a `gr.Blocks` whose `uploads` hold what is sent."""

    def in_sentences(answer: Answer) -> Answer:
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

    def compared(image: Any, question: Any, layer: Any, cap: Any) -> tuple[Analysis, str]:
        """Both runs, and what is to be said of the picture."""
        (session, stop), vlm = caller(), engine.vlm
        file = uploads.received(image)
        uploads.claim(session, file["path"])
        query = Query.read(file, question, layer, cap, vlm.sampling)
        return engine.compare_to_end(session, vlm, query, stop), query.note

    @in_sentences
    def compare(image: gr.FileData, question: str, layer: int, max_new_tokens: int) -> dict[str, Any]:
        """Answer a question about a picture twice, with every layer seeing it and with its tokens withdrawn at a layer.

        Args:
            image: The picture, or a clip if the model takes clips: a data URI (data:image/png;base64,...) or a file.
            question: What to ask about it.
            layer: Withdrawal layer K, from 1 to the model's number of decoder layers, which withdraws nothing.
            max_new_tokens: The longest answer, in tokens.

        Returns:
            Both answers with their tokens, times of one run in milliseconds, prefill FLOPs and bytes of KV cache, and
            the verdict of it; `note` says what of the picture was left out, such as an animation's further frames.
        """
        analysis, note = compared(image, question, layer, max_new_tokens)
        return {"verdict": analysis.verdict, **analysis.comparison.to_json(), "note": note}

    @in_sentences
    def examine(image: gr.FileData, question: str, layer: int, max_new_tokens: int) -> dict[str, Any]:
        """Answer a question about a picture twice and measure all that the page shows of it, the plots' numbers.

        Args:
            image: The picture, or a clip if the model takes clips: a data URI (data:image/png;base64,...) or a file.
            question: What to ask about it.
            layer: Withdrawal layer K, from 1 to the model's number of decoder layers, which withdraws nothing.
            max_new_tokens: The longest answer, in tokens.

        Returns:
            The comparison, attention mass and maps, migration, cost and time by layer, divergence at every K,
            probabilities of the answers' tokens, and the machine.
        """
        calibration, (session, stop) = engine.calibration, caller()
        analysis, note = compared(image, question, layer, max_new_tokens)
        for part in ALL_PARTS:
            with suppress(UserError):  # a part that this model's can't be known of: the data say so themselves
                for _ in engine.measure(session, analysis, part, stop, follows=True):
                    pass
        return {**report_data(analysis, calibration, this_machine()), "note": note}

    for function in (compare, examine):
        gr.api(function, api_name=function.__name__, concurrency_limit=None)
