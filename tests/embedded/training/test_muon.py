import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta

import torch
import torch.distributed
from torch import nn

from vtw_demo.embedded.training.muon import Muon, orthogonalized


def test_singular_values_come_near_one():
    torch.manual_seed(0)
    for shape in ((2, 32, 96), (2, 96, 32)):
        values = torch.linalg.svdvals(orthogonalized(torch.randn(shape)))
        assert values.min() > 0.6
        assert values.max() < 1.3


def test_it_steps_as_the_library_does():
    """torch.optim.Muon iterates in bfloat16: the same steps, to within its rounding."""
    torch.manual_seed(0)
    start = [torch.randn(48, 32), torch.randn(32, 48), torch.randn(48, 32)]
    ours, theirs = ([nn.Parameter(matrix.clone()) for matrix in start] for _ in range(2))
    optimizers = (Muon(ours, 0.1, torch.float32), torch.optim.Muon(theirs, lr=0.1, momentum=0.95, weight_decay=0.0))
    for _ in range(3):
        gradients = [torch.randn_like(matrix) for matrix in start]
        for matrices, optimizer in zip((ours, theirs), optimizers, strict=True):
            for matrix, gradient in zip(matrices, gradients, strict=True):
                matrix.grad = gradient.clone()
            optimizer.step()
    for before, own, library in zip(start, ours, theirs, strict=True):
        moved, expected = own.detach() - before, library.detach() - before
        assert (moved - expected).norm() < 0.03 * expected.norm()


def test_two_processes_share_the_work_and_step_alike(tmp_path):
    torch.manual_seed(0)
    start = [torch.randn(24, 16), torch.randn(16, 24), torch.randn(24, 16)]
    gradients = [torch.randn_like(matrix) for matrix in start]
    alone = stepped(start, gradients)
    given = (tmp_path / "rendezvous", start, gradients)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        other = pool.submit(stepped_beside_another, 1, *given)
        beside = [stepped_beside_another(0, *given), other.result()]
    for matrices in beside:
        for matrix, expected in zip(matrices, alone, strict=True):
            torch.testing.assert_close(matrix, expected)


def stepped(start, gradients):
    matrices = [nn.Parameter(matrix.clone()) for matrix in start]
    for matrix, gradient in zip(matrices, gradients, strict=True):
        matrix.grad = gradient
    Muon(matrices, 0.1, torch.float32).step()
    return [matrix.detach() for matrix in matrices]


def stepped_beside_another(rank, rendezvous, start, gradients):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2, timeout=timedelta(minutes=2)
    )
    try:
        return stepped(start, gradients)
    finally:
        torch.distributed.destroy_process_group()
