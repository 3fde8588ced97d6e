import pytest
import torch

from vtw_demo.measurements.attention_sums import sum_by_label


def test_sum_by_label():
    weights = torch.tensor([[0.0, 0.1, 0.2, 0.3, 0.4]])
    segments = torch.tensor([-1, 0, 2, 2, 4])
    torch.testing.assert_close(sum_by_label(weights, segments, 5), torch.tensor([[0.1, 0, 0.5, 0, 0.4]]))
    with pytest.raises(RuntimeError, match="attended to 5 positions where 4 were expected"):
        sum_by_label(weights, segments[1:], 5)
