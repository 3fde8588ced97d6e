"""What a Space on ZeroGPU does, with its real package `spaces`, and the CPU in place of the GPU.

Run as a process of its own, it prints what it found as JSON. `spaces` schedules leases with a service, which here is a
small server that always has a GPU; it forks workers, sends them arguments and takes events from them as there. Only
what touches CUDA is replaced: torch's CPU build lacks three names that `spaces` looks up, and in the worker weights
come from memory to the CPU instead of from the disk to the GPU.
"""

import base64
import json
import os
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit


class Service(BaseHTTPRequestHandler):
    """Lends the one GPU that it has; a worker that was given back is idle, and used again."""

    asked: list[tuple[str, dict[str, str]]] = []  # noqa: RUF012
    refuses = False

    def do_POST(self):
        address = urlsplit(self.path)
        self.asked.append((address.path, {name: value[0] for name, value in parse_qs(address.query).items()}))
        released = any(path == "/release" for path, _ in self.asked)
        lent = {"idle": released, "nvidiaIndex": 0, "nvidiaUUID": "GPU-0", "allowToken": "token"}
        quota = {"left": 3, "wait": 3600}
        body = json.dumps(quota if self.refuses else lent).encode() if address.path == "/schedule" else b""
        self.send_response(429 if self.refuses and address.path == "/schedule" else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def begin():
    """This process becomes a Space's; gives the service's list of what it is asked."""
    service = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    threading.Thread(target=service.serve_forever, daemon=True).start()
    os.environ |= {
        "SPACES_ZERO_GPU": "true",
        "SPACES_ZERO_DEVICE_API_URL": f"http://127.0.0.1:{service.server_port}",
        "ZEROGPU_OFFLOAD_DIR": tempfile.mkdtemp(),
        "NO_PROXY": "127.0.0.1",
    }
    # With CUDA in torch it would look up more names of it.
    import bitsandbytes  # noqa: F401
    import torch

    torch.set_num_threads(1)
    torch.version.cuda = "13.0"
    torch._C._cuda_init = lambda: None
    torch.cuda._is_in_bad_fork = bool
    import spaces.zero.torch as space_torch
    from spaces.zero.torch.patching import cuda_aliases

    weights, pack = [], space_torch.pack

    def pack_away():
        weights.extend(cuda_aliases.items())
        return pack()

    def to_the_cpu(callback):
        for placed, original in weights:
            placed.data = original

    space_torch.pack = pack_away
    space_torch.init = lambda gpu: None
    space_torch.move = to_the_cpu
    return Service.asked


def stubborn(vlm, stop):
    """Gives one event, then works until it is stopped, and leaves a note."""
    import time

    yield os.getpid()
    deadline = time.monotonic() + 60
    while not stop.is_set() and time.monotonic() < deadline:
        time.sleep(0.01)
    Path(os.environ["NOTE"]).write_text("stopped" if stop.is_set() else "never stopped")
    yield "too late"


def fails(vlm, kind):
    yield 1
    raise kind("a sentence for people")


def request():
    """A visitor's, as the hub sends it to a Space: with a token that says whose quota a lease is on."""
    import gradio as gr
    from starlette.requests import Request

    payload = base64.urlsafe_b64encode(json.dumps({"user": "someone"}).encode()).decode().rstrip("=")
    return gr.Request(Request({"type": "http", "headers": [(b"x-ip-token", f"a.{payload}.c".encode())]}))


def start():
    """As the Space starts: the model is placed, then `spaces` packs its weights away and the page is served."""
    import gradio as gr

    from vtw_demo.comparison.calibration import CalibrationStore
    from vtw_demo.models.loading import load
    from vtw_demo.server.engine import Engine

    engine = Engine(load("embedded"), CalibrationStore(Path(tempfile.mkdtemp())))
    found = {"device": str(engine.vlm.device), "precision": engine.vlm.precision}
    with gr.Blocks(analytics_enabled=False) as page:
        gr.Markdown("A page")
    page.launch(prevent_thread_lock=True, quiet=True, server_port=int(sys.argv[2]))
    return engine, found


def use(engine, asked):
    """What visitors do, in threads that aren't the main one."""
    from gradio.context import LocalContext
    from PIL import Image

    from vtw_demo.comparison.analysis import Analysis, all_parts
    from vtw_demo.comparison.compare import compare_prompt
    from vtw_demo.server.query import Query
    from vtw_demo.server.queue import Place

    def without_places(events):
        return [event for event in events if not isinstance(event, Place)]

    asked.clear()
    found, vlm, stop = {}, engine.vlm, threading.Event()
    query = Query(Image.open("assets/examples/two-shapes.png"), "What is the blue thing?", 9, 8)
    prompt = query.prompt(vlm)
    found["prompt waits on"] = sorted({str(value.device) for value in (*prompt.inputs.values(), prompt.segments)})
    LocalContext.request.set(request())
    events = without_places(engine.compare("a", vlm, query, prompt, stop=stop))
    LocalContext.request.set(None)
    comparison = events[-1]
    found["kinds"] = [type(event).__name__ for event in events]
    found["texts"] = [event.text for event in events if hasattr(event, "text")]
    found["answers"] = [comparison.full.answer, comparison.withdrawn.answer]
    found["tokens"] = [comparison.full.tokens, comparison.withdrawn.tokens]
    found["asked by a comparison"] = list(asked)

    analysis = Analysis(vlm, prompt, comparison)
    for part in all_parts(comparison):
        list(engine.measure("a", analysis, part, stop))
    before = len(asked)
    for part in all_parts(comparison):
        list(engine.measure("a", analysis, part, stop))
    found["analysis"] = analysis.to_json()
    found["leases of what is known"] = len(asked) - before
    rounds = without_places(engine.repeat_timing("a", analysis, 2, stop))
    found["rounds"] = [analysis.timing.rounds, len(rounds)]
    answers = without_places(engine.answer_at_layers("a", vlm, prompt, (3, 9), comparison.full, 8, stop))
    found["answers at layers"] = [[answer.layer, answer.run.answer] for answer in answers]
    calibration = without_places(engine.calibrate("a", vlm, 2, 0.003, stop))[-1]
    found["calibrated"] = [len(calibration.measurements), engine.calibration(vlm) is calibration]
    found["leases of three more"] = sum(path == "/schedule" for path, _ in asked[before:])

    before = len(asked)
    events = without_places(engine.ask_on("a", analysis, "How many things are there?", 8, stop))
    found["second question"] = events[-1].to_json()
    found["it is kept"] = analysis.follow_up is events[-1]
    found["leases of it"] = sum(path == "/schedule" for path, _ in asked[before:])

    note = Path(os.environ["NOTE"])
    run = engine.host.run(stubborn, vlm, 1)(stop=stop)
    workers = {next(run)}
    stop.set()
    found["after stop"] = list(run)
    found["note after stop"] = note.read_text()
    note.unlink()
    run = engine.host.run(stubborn, vlm, 1)(stop=threading.Event())
    workers.add(next(run))
    run.close()
    found["note after close"] = note.read_text()
    found["workers"], found["own"] = sorted(workers), os.getpid()

    for kind in (ValueError, KeyError, MemoryError):
        try:
            list(engine.host.run(fails, vlm, 1)(kind))
        except Exception as error:
            found[f"raised {kind.__name__}"] = [type(error).__name__, str(error)]
    try:
        list(engine.host.run(compare_prompt, vlm, 2, 8)(prompt, 99, 8))
    except Exception as error:
        found["refused"] = [type(error).__name__, str(error)]
    before = len(asked)
    for name, model, new_tokens in (
        ("another model", replace(vlm, model=copy(vlm.model)), 8),
        ("too long", vlm, 10**6),
    ):
        try:
            list(engine.host.run(compare_prompt, model, 2, new_tokens)(prompt, 9, 8))
        except ValueError as error:
            found[name] = str(error)
    found["leases of these"] = len(asked) - before
    Service.refuses = True
    try:
        list(engine.compare("a", vlm, query, prompt))
    except ValueError as error:
        found["without quota"] = str(error)
    found["scheduled"] = sum(path == "/schedule" for path, _ in asked)
    found["released"] = sum(path == "/release" for path, _ in asked)
    return found


if __name__ == "__main__":
    asked = begin()
    engine, found = start()
    found["told at the start"] = [path for path, _ in asked]
    with ThreadPoolExecutor(1) as visitor:
        found |= visitor.submit(use, engine, asked).result()
    Path(sys.argv[1]).write_text(json.dumps(found))
    # Gradio's server and the workers end with the process.
    os._exit(0)
