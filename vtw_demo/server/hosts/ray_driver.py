"""The process that speaks with Ray for the page, which outlives it: Ray ends whoever uses it when it goes itself.

The page tells it, over a connection, `("deploy", number, choice)` or `("run", number, asked)`; `("stop", number, None)`
lets a run end by itself, `("cancel", number, None)` ends it. It answers `(number, kind, value)`, of which the last has
another kind than EVENT. It ends with the connection.
"""

import logging
import os
import re
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.config import ProxyLocation
from ray.serve.exceptions import RayServeException

from vtw_demo.models.loading import ModelChoice
from vtw_demo.models.ray_cluster import share_of_cpus
from vtw_demo.server.hosts.ray_process import ENDED, EVENT, FAILED, LOST, REFUSED
from vtw_demo.server.hosts.ray_replica import Replica, ReplicaPlan, Stops

# One page of a machine: what one left that was killed is replaced.
APPLICATION = f"vtw-demo-{socket.gethostname()}"
OBJECT_STORE_BYTES = 500_000_000


@dataclass(frozen=True)
class RaySettings:
    address: str | None  # of a cluster that is there; None starts one on this machine
    fewest: int
    most: int


class Driver:
    def __init__(self, connection: Connection, settings: RaySettings) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self._settings = settings
        self._handle: Any = None
        self._stops: Any = ray.remote(num_cpus=0)(Stops).remote()
        self._responses: dict[int, Any] = {}  # of what is asked and not over; None before Ray has given one
        self._cancelled: set[int] = set()

    def serve(self) -> None:
        """Until the connection ends."""
        tasks = {"deploy": self._deploy, "run": self._run}
        with ThreadPoolExecutor(4 * self._settings.most + 4) as threads:
            with suppress(EOFError, OSError):
                while True:
                    asked, number, value = self._connection.recv()
                    if asked == "stop":
                        self._stops.set.remote(number)
                    elif asked == "cancel":
                        self._cancel(number)
                    else:
                        self._responses[number] = None
                        threads.submit(self._answer, tasks[asked], number, value)
            for number in tuple(self._responses):
                self._cancel(number)

    def _tell(self, number: int, kind: str, value: Any = None) -> None:
        with self._sending, suppress(OSError):  # the page has gone
            self._connection.send((number, kind, value))

    def _answer(self, work: Any, number: int, value: Any) -> None:
        try:
            work(number, value)
            self._tell(number, ENDED)
        except RayTaskError as error:
            self._tell(number, FAILED, type(error.cause).__name__)
        except (RayError, RayServeException, ConnectionError, TimeoutError) as error:
            self._tell(number, LOST, f"{type(error).__name__}: {error!s:.300}")
        except Exception as error:
            self._tell(number, REFUSED, str(error))
        finally:
            self._responses.pop(number, None)
            self._cancelled.discard(number)

    def _deploy(self, number: int, choice: ModelChoice) -> None:
        settings, self._handle = self._settings, None
        serve.delete(APPLICATION)
        actor, plan = self._share(choice)
        several: dict[str, Any] = {"num_replicas": settings.fewest}
        if settings.fewest < settings.most:
            several = {
                "autoscaling_config": {
                    "min_replicas": settings.fewest, "max_replicas": settings.most,
                    "initial_replicas": settings.fewest, "target_ongoing_requests": 1, "upscale_delay_s": 1,
                    "downscale_delay_s": 30, "metrics_interval_s": 1, "look_back_period_s": 2,
                }
            }  # fmt: skip
        deployment = serve.deployment(
            name="model", max_ongoing_requests=1, ray_actor_options=actor, health_check_period_s=2,
            health_check_timeout_s=10, graceful_shutdown_timeout_s=5, graceful_shutdown_wait_loop_s=0.1,
            max_constructor_retry_count=1, **several,
        )(Replica)  # fmt: skip
        try:
            handle = serve.run(deployment.bind(plan, self._stops), name=APPLICATION, route_prefix=None)
        except RuntimeError as error:
            application = serve.status().applications.get(APPLICATION)
            told = [of.message for of in application.deployments.values()] if application else []
            said = re.findall(r"UserError: (.+?)(?:\\n|$)", "\n".join([*told, str(error)]), re.M)
            serve.delete(APPLICATION)
            raise ValueError(said[-1] if said else f"Ray can't start the model: {error!s:.300}") from error
        self._tell(number, EVENT, handle.facts.remote().result())
        self._handle = handle.options(method_name="run", stream=True)

    def _share(self, choice: ModelChoice) -> tuple[dict[str, Any], ReplicaPlan]:
        """What a replica has of the machines."""
        most, nodes = self._settings.most, ray.nodes()
        on_gpu = bool(ray.cluster_resources().get("GPU")) and choice.device in (None, "cuda")
        share = share_of_cpus(nodes, most, on_gpu)
        if on_gpu:
            return {"num_gpus": 1, "num_cpus": share}, ReplicaPlan(replace(choice, device="cuda"), None)
        threads = min(share, int(os.environ.get("OMP_NUM_THREADS") or share))
        largest = max(int(node["Resources"].get("CPU", 0)) for node in nodes if node["Alive"])
        plan = ReplicaPlan(replace(choice, device="cpu"), threads, sharing=min(most, largest // share))
        return {"num_cpus": share}, plan

    def _run(self, number: int, asked: bytes) -> None:
        if self._handle is None:
            raise ConnectionError("the model isn't loaded")
        response = self._responses[number] = self._handle.remote(asked, number)
        try:
            if number in self._cancelled:
                response.cancel()
            for event in response:
                self._tell(number, EVENT, event)
        except BaseException:  # a cancelled one ends with asyncio's, which is no Exception
            if number not in self._cancelled:
                raise

    def _cancel(self, number: int) -> None:
        if number in self._responses:
            self._cancelled.add(number)
            if (response := self._responses.get(number)) is not None:
                response.cancel()


def main(file_number: int) -> None:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    connection = Connection(file_number)
    settings = RaySettings(**connection.recv())
    cores = max(os.cpu_count() or 1, settings.most)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    quietly: dict[str, Any] = {"namespace": "vtw-demo", "log_to_driver": False, "logging_level": "ERROR"}
    quietly["runtime_env"] = {"env_vars": {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}}
    own: dict[str, Any] = {"num_cpus": cores, "include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    try:
        ray.init(settings.address or "local", **({} if settings.address else own), **quietly)
        serve.start(proxy_location=ProxyLocation.Disabled)
    except Exception as error:
        connection.send((0, REFUSED, f"{type(error).__name__}: {error!s:.300}"))
        return
    connection.send((0, ENDED, None))
    try:
        Driver(connection, settings).serve()
    finally:
        with suppress(Exception):
            serve.delete(APPLICATION)
        ray.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]))
