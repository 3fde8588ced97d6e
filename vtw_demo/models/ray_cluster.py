"""What is asked of Ray before it is used: whether a cluster is there, and what each replica can have of it."""

import socket
from collections.abc import Sequence
from typing import Any

from vtw_demo.errors import UserError

MISSING = "Replicas run on Ray, which isn't installed: `pip install 'ray[serve]'`."
CONNECT_SECONDS = 10.0


def check_address(address: str) -> None:
    """Raise UserError where nothing answers at HOST:PORT; Ray itself would try for minutes. "auto" is the cluster that
    this machine belongs to."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, ValueError, OverflowError) as error:
        raise UserError(
            f"No Ray cluster is at {address!r} (--ray): {error}. It is HOST:PORT, as `ray start` says it, or auto."
        ) from error


def share_of_cpus(nodes: Sequence[dict[str, Any]], replicas: int, on_gpu: bool) -> int:
    """The most CPUs that each of so many replicas can have, none of which is spread over nodes; with `on_gpu` each has
    a GPU, too. `nodes` is what `ray.nodes` gives. Raises UserError where they don't fit."""
    there = [node["Resources"] for node in nodes if node["Alive"]]
    of_nodes = [(int(node.get("CPU", 0)), int(node.get("GPU", 0))) for node in there]
    for share in range(max((cpus for cpus, _ in of_nodes), default=0), 0, -1):
        if sum(min(cpus // share, gpus) if on_gpu else cpus // share for cpus, gpus in of_nodes) >= replicas:
            return share
    cpus, gpus = (sum(had) for had in zip(*of_nodes, strict=True))
    fit = sum(min(of_node) if on_gpu else of_node[0] for of_node in of_nodes)
    has = f"{cpus} CPUs and {gpus} GPUs" if on_gpu else f"{cpus} CPUs"
    raise UserError(f"{replicas} replicas were asked for, and Ray has {has}: {fit} fit, each with one of its own.")
