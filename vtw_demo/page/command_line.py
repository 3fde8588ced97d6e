"""`python app.py`: reads the command line, loads the model, serves the page until it is told to end."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import threading
from collections.abc import Sequence
from types import FrameType

from vtw_demo import load
from vtw_demo.calibration_store import CalibrationStore
from vtw_demo.models import EMBEDDED, QUANTIZATIONS
from vtw_demo.page.build import build_page
from vtw_demo.page.engine import Engine
from vtw_demo.page.layout import MAXIMUM_UPLOAD
from vtw_demo.page.theme import CSS, SCRIPTS, THEME

NO_QUANTIZATION = "none"
# A visitor's session holds a few figures and attention shares; the oldest are dropped beyond this many.
KEPT_SESSIONS = 500


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python app.py",
        description="Visual Tokens Withdrawal made visible: one question about a picture, answered twice, with "
        "every decoder layer seeing the picture and with the visual tokens withdrawn at layer K.",
    )
    parser.add_argument(
        "--model",
        default=EMBEDDED,
        help=f"'{EMBEDDED}' (the model that ships with the demo), a folder, or a Hugging Face id (default: {EMBEDDED})",
    )
    parser.add_argument(
        "--quantization",
        choices=(*QUANTIZATIONS, NO_QUANTIZATION),
        default=NO_QUANTIZATION,
        help=f"hold the decoder's weights in 4 or 8 bits (bitsandbytes) (default: {NO_QUANTIZATION})",
    )
    parser.add_argument(
        "--device", help="where the model runs, as torch names it: cuda, cuda:1, cpu (default: a GPU if there is one)"
    )
    parser.add_argument(
        "--host",
        help="address to listen on; 0.0.0.0 lets other machines in (default: GRADIO_SERVER_NAME, else 127.0.0.1)",
    )
    parser.add_argument(
        "--port", type=int, help="port to listen on (default: GRADIO_SERVER_PORT, else the first free one from 7860)"
    )
    parser.add_argument("--share", action="store_true", help="make a public link through Gradio's servers for 72 hours")
    parser.add_argument(
        "--layer",
        type=int,
        metavar="K",
        help="withdrawal layer that the page starts with, from 1 to the number of decoder layers (default: the "
        "calibrated one, else three quarters of the layers)",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve the page; the result is the exit code: 0 after SIGTERM or Ctrl+C, 2 where it can't start."""
    options = build_parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    signal.signal(signal.SIGTERM, _leave)
    try:
        return _serve(options)
    except (SystemExit, KeyboardInterrupt):
        return 0
    except (ValueError, OSError) as error:
        print(f"VTW Demo can't start: {error}", file=sys.stderr)
        return 2


def _serve(options: argparse.Namespace) -> int:
    quantization = None if options.quantization == NO_QUANTIZATION else options.quantization
    vlm = load(options.model, quantization=quantization, device=options.device)
    engine = Engine(vlm, CalibrationStore.of(vlm))
    page = build_page(engine, options.layer)
    try:
        page.launch(
            server_name=options.host,
            server_port=options.port,
            share=options.share,
            theme=THEME,
            css=CSS,
            head=SCRIPTS,
            footer_links=["api", "settings"],
            run_history=False,
            ssr_mode=False,
            mcp_server=True,
            max_file_size=MAXIMUM_UPLOAD,
            state_session_capacity=KEPT_SESSIONS,
            prevent_thread_lock=True,
        )
        threading.Event().wait()
    finally:
        engine.close()
        page.close()
    return 0


def _leave(signal_number: int, frame: FrameType | None) -> None:
    """Ends the wait in `_serve`, or whatever comes before it."""
    raise SystemExit(0)
