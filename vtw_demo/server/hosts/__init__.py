"""Where the model runs: in this process, in leases of ZeroGPU, on replicas of Ray."""

from vtw_demo.errors import UserError
from vtw_demo.models.devices import on_zero_gpu
from vtw_demo.server.hosts.host import Host
from vtw_demo.server.hosts.ray_replicas import RayReplicas, ReplicaCount
from vtw_demo.server.hosts.this_process import ThisProcess
from vtw_demo.server.hosts.zero_gpu import ZeroGPU


def this_machines() -> Host:
    """Where it runs unless replicas are asked for."""
    return ZeroGPU() if on_zero_gpu() else ThisProcess()


def chosen_host(replicas: str | None, ray_address: str | None) -> Host:
    """Where it runs, by the options. Raises UserError for what they can't be."""
    if replicas is None:
        if ray_address is not None:
            raise UserError(f"--ray {ray_address} (or VTW_RAY_ADDRESS) is where replicas are: add --replicas 2.")
        return this_machines()
    if on_zero_gpu():
        raise UserError("ZeroGPU lends its GPU to one process: --replicas (or VTW_REPLICAS) isn't for it.")
    return RayReplicas(ReplicaCount.read(replicas), ray_address)
