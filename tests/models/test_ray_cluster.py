"""What fits on a cluster's nodes; whether one is there needs no Ray."""

import socket

import pytest

from vtw_demo.errors import UserError
from vtw_demo.models.ray_cluster import check_address, share_of_cpus


def nodes(*cpus_and_gpus):
    return [{"Alive": True, "Resources": {"CPU": float(cpus), "GPU": float(gpus)}} for cpus, gpus in cpus_and_gpus]


@pytest.mark.parametrize(
    ("cpus", "replicas", "share"),
    [((8,), 2, 4), ((8,), 3, 2), ((2,), 2, 1), ((8, 4), 3, 4), ((8, 4), 2, 4), ((5,), 1, 5)],
)
def test_each_has_as_many_as_all_can_have_and_none_is_spread_over_nodes(cpus, replicas, share):
    assert share_of_cpus(nodes(*((of, 0) for of in cpus)), replicas, on_gpu=False) == share


def test_with_gpus_each_has_one():
    assert share_of_cpus(nodes((16, 2), (8, 1)), 3, on_gpu=True) == 8
    with pytest.raises(UserError, match="4 replicas were asked for, and Ray has 24 CPUs and 3 GPUs: 3 fit"):
        share_of_cpus(nodes((16, 2), (8, 1)), 4, on_gpu=True)


def test_too_many_and_a_node_that_is_gone():
    gone = {"Alive": False, "Resources": {"CPU": 64.0}}
    with pytest.raises(UserError, match="3 replicas were asked for, and Ray has 2 CPUs: 2 fit"):
        share_of_cpus([*nodes((2, 0)), gone], 3, on_gpu=False)


def test_an_address_where_something_answers_is_taken_and_no_other():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        check_address(f"127.0.0.1:{listener.getsockname()[1]}")
    for address in ("127.0.0.1:1", "nonsense", "no.such.host.invalid:6379", "127.0.0.1:99999", "ray://127.0.0.1:1"):
        with pytest.raises(UserError, match=f"No Ray cluster is at '{address}'"):
            check_address(address)
