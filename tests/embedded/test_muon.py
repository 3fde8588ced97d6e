import torch
from torch import nn

from vtw_demo.embedded.muon import Muon, orthogonalized


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
