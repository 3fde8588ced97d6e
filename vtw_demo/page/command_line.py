"""`python app.py`: reads the command line, loads the model, serves the page until it is told to end."""

import argparse
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

from vtw_demo.comparison.calibration import CalibrationStore
from vtw_demo.errors import UserError
from vtw_demo.models.arguments import add_model_arguments, add_options, chosen_model, load_with_bars, switch
from vtw_demo.models.devices import on_zero_gpu
from vtw_demo.models.loading import EMBEDDED
from vtw_demo.models.registry import from_environment
from vtw_demo.page.build import build_page
from vtw_demo.page.layout import CSS, HEAD, THEME
from vtw_demo.server.access import read_accounts
from vtw_demo.server.engine import Engine
from vtw_demo.server.hosts import chosen_host
from vtw_demo.server.listening import check_variables, listening
from vtw_demo.server.monitoring import Monitoring, OneLine
from vtw_demo.server.queue import PLACES
from vtw_demo.server.space_runtime import default_host, on_space, use_own_cores
from vtw_demo.server.switching import Switching
from vtw_demo.server.upgrade import Upgrade
from vtw_demo.server.uploads import own_upload_folder

logger = logging.getLogger(__name__)

KEPT_SESSIONS = 500  # each holds a few figures and attention shares; the oldest are dropped
# Who waits for a turn holds a thread, and so does what follows a turn; the rest is for what needs no model.
THREADS = 2 * PLACES + 40


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python app.py",
        description="Visual Tokens Withdrawal made visible: one question about a picture, answered twice, with "
        "every decoder layer seeing the picture and with the visual tokens withdrawn at layer K. Without --model it "
        "shows the embedded model at once, and fetches the one that suits this machine beside it.",
    )
    add_model_arguments(parser, default_model=None)
    add_options(
        parser,
        Path(__file__).with_name("app_options.toml"),
        host={"default": default_host()},
        port={"default": os.environ.get("GRADIO_SERVER_PORT")},
        model_switching={
            "action": argparse.BooleanOptionalAction,
            "default": switch("VTW_MODEL_SWITCHING", default=not on_space()),
        },
        log_questions={"default": switch("VTW_LOG_QUESTIONS")},
        share={"default": switch("GRADIO_SHARE")},
        layer={"type": _whole_number, "default": from_environment("LAYER")},
        replicas={"default": from_environment("REPLICAS")},
        ray={"default": from_environment("RAY_ADDRESS")},
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve the page; the result is the exit code: 0 after SIGTERM or Ctrl+C, 2 where it can't start."""
    log = logging.StreamHandler()
    log.setFormatter(OneLine("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[log])
    logging.getLogger("httpx").setLevel(logging.WARNING)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # ends the wait in `_serve`, or whatever is before it
    try:
        options = build_parser().parse_args(arguments)
        check_variables()
        with listening(options.host, options.port):
            pass  # what keeps it from listening is told before a model is loaded
        with own_upload_folder():
            _serve(options)
    except KeyboardInterrupt:
        pass
    except (UserError, OSError) as error:
        print(f"VTW Demo can't start: {error}", file=sys.stderr)
        return 2
    return 0


def _serve(options: argparse.Namespace) -> None:
    accounts = read_accounts(options.auth, from_environment("AUTH"))
    host = chosen_host(options.replicas, options.ray)
    use_own_cores()
    is_upgraded = options.model is None and not on_zero_gpu()
    choice = chosen_model(options, EMBEDDED if is_upgraded else None)
    vlm = load_with_bars(choice, host.load).at_detail(options.picture_detail)
    logger.info("%s %s", choice.reason or f"Running {choice.name}.", vlm.quantized)
    engine = Engine(vlm, CalibrationStore.of(vlm), monitoring=Monitoring(options.log_questions), host=host)
    is_switchable = options.model_switching and not on_zero_gpu()
    switching = Switching(engine, choice)
    upgrade = Upgrade(switching, partial(chosen_model, options)) if is_upgraded else None
    page = build_page(engine, options.layer, switching if is_switchable else None, upgrade)
    with listening(options.host, options.port) as place, closing(page), closing(engine):
        page.launch(
            place,
            share=options.share,
            theme=THEME,
            css=CSS,
            head=HEAD,
            footer_links=["api", "settings"],
            run_history=False,
            ssr_mode=False,
            mcp_server=True,
            state_session_capacity=KEPT_SESSIONS,
            max_threads=THREADS,
            auth=accounts,
        )
        if upgrade is not None and not is_switchable:
            upgrade.begin()
        try:
            threading.Event().wait()
        finally:
            if upgrade is not None:
                upgrade.stop()  # the process would wait for its download


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"K must be a whole number (--layer or VTW_LAYER); this is {text!r}."
        ) from None
