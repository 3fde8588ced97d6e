"""PyramidDrop: visual tokens that get little attention are dropped in stages.

Xing et al., "PyramidDrop: Accelerating Your Large Vision-Language Models via Pyramid Visual Redundancy Reduction",
CVPR 2025, arXiv 2410.17247; authors' code: github Cooperx521/PyramidDrop.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from transformers import PreTrainedModel

from vtw_demo.withdrawal.fastv import FastV
from vtw_demo.withdrawal.steps import Keep, check_order, pruned
from vtw_demo.withdrawal.withdraw import whole_number


@contextmanager
def pyramid_drop(model: PreTrainedModel, stages: Mapping[int, Keep]) -> Iterator[None]:
    """Drop visual tokens of `model` before each of the decoder layers in `stages`, inside a `with` block.

    From a layer on, the share of the prompt's visual tokens stays that `stages` gives for it; the paper halves them
    before layers 8, 16 and 24 of 32: `{8: 0.5, 16: 0.25, 24: 0.125}`. Which ones is ranked as in `fastv`, by the
    attention of the last instruction token in the layer before. (The authors' code multiplies the queries and keys of
    the layer to come once more for it; here the attention is that which the layer before computes anyway.)

    Raises what `fastv` raises, and ValueError for shares that grow, or no stage.
    """
    steps = [PyramidDrop(whole_number(layer, "A stage's layer"), keep) for layer, keep in sorted(stages.items())]
    check_order(steps)
    with pruned(model, steps):
        yield


@dataclass(frozen=True)
class PyramidDrop(FastV):
    word = "pyramid_drop"
