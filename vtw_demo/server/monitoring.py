"""What the server says of itself: metrics for Prometheus, whether it is well, and one line of log for each event."""

import logging
from collections.abc import Callable
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from vtw_demo.server.errors import QUEUE_FULL, REFUSED, Fault, fault_of, trace_of

logger = logging.getLogger(__name__)

HEALTH, METRICS = "/health", "/metrics"
# From one token of a small model to a long answer of a large one, in seconds.
BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Monitoring:
    """Counts and logs what happens. No line of the log holds a picture, and none what was asked, nor what an error
    says, which may quote it, unless `log_questions`. Metrics hold neither."""

    def __init__(self, log_questions: bool = False) -> None:
        self.log_questions = log_questions
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self._waiting = Gauge("vtw_queue_length", "Turns that wait for the model.", registry=registry)
        self._turns = Counter(
            "vtw_runs", "Turns at the model that ended, and how.", ("kind", "outcome"), registry=registry
        )
        seconds = partial(Histogram, labelnames=("kind",), buckets=BUCKETS, registry=registry)
        self._seconds = seconds("vtw_run_seconds", "How long a turn had the model.")
        self._waited = seconds("vtw_wait_seconds", "How long a turn waited for it.")
        self._errors = Counter("vtw_errors", "Requests that went wrong, by kind.", ("kind",), registry=registry)
        self._model = Gauge("vtw_model", "The model that is loaded, at 1.", ("model", "precision"), registry=registry)

    def loaded(self, model: str, precision: str) -> None:
        self._model.clear()
        self._model.labels(model, precision).set(1)
        logger.info("the model is %s, %s", model, precision)

    def waiting(self, turns: int) -> None:
        self._waiting.set(turns)

    def ran(self, kind: str, outcome: str, waited_seconds: float, seconds: float) -> None:
        """A turn has ended: it is done, stopped, or it failed with this kind of fault."""
        self._turns.labels(kind, outcome).inc()
        self._seconds.labels(kind).observe(seconds)
        self._waited.labels(kind).observe(waited_seconds)
        logger.info("%s: %s after %.2f s, having waited %.2f s", kind, outcome, seconds, waited_seconds)

    def asked(self, question: str, layer: int) -> None:
        if self.log_questions:
            logger.info("asked at K = %d: %r", layer, question)

    def fault_of(self, error: Exception) -> Fault:
        """What to say of an error, counted and logged."""
        fault = fault_of(error)
        if fault.kind in (REFUSED, QUEUE_FULL):
            self.refused(fault, type(error).__name__)
        else:
            self._errors.labels(fault.kind).inc()
            logger.error("%s: %s", fault.kind, trace_of(error, with_message=self.log_questions))
        return fault

    def refused(self, fault: Fault, why: str) -> None:
        """A request that means nothing, or that there is no room for; `why` is a name, not what was sent."""
        self._errors.labels(fault.kind).inc()
        logger.info("%s: %s", fault.kind, fault.sentence if self.log_questions else why)


def status_routes(monitoring: Monitoring, is_closing: Callable[[], bool]) -> list[Route]:
    """`/metrics`, and `/health`: 200 while the page serves, 503 once it closes."""

    async def metrics(request: Request) -> Response:
        return Response(generate_latest(monitoring.registry), media_type=CONTENT_TYPE_LATEST)

    async def health(request: Request) -> Response:
        closing = is_closing()
        return JSONResponse({"status": "closing" if closing else "ready"}, 503 if closing else 200)

    return [Route(METRICS, metrics), Route(HEALTH, health)]


class OneLine(logging.Formatter):
    """A line for each event, whatever its message and traceback hold."""

    def format(self, record: logging.LogRecord) -> str:
        return " | ".join(super().format(record).splitlines())
