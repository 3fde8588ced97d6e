"""Where a model looks: each layer's shares of attention, the mean over a data set's questions."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from vtw_demo.comparison.data_rows import DataSample
from vtw_demo.formats import filled
from vtw_demo.measurements.attention import Shares, mean_shares, measure_attention
from vtw_demo.models.devices import on_model_thread
from vtw_demo.models.vision_language_model import VisionLanguageModel
from vtw_demo.withdrawal.segments import Segment


def mean_attention(vlm: VisionLanguageModel, samples: Iterable[DataSample]) -> tuple[Shares | None, ...]:
    """(layers, segments): of the full model, at the last position of each sample's prompt; None where none attends."""
    found = []
    for sample in samples:
        inputs = vlm.prepare(sample.open(), sample.question)
        found.append(on_model_thread(measure_attention, vlm.model, inputs).last_prompt)
    return mean_shares(found)


def attention_markdown(shares: Sequence[Shares | None]) -> str:
    """A row a layer that attends; no answer is there yet."""
    return filled(Path(__file__).with_name("attention.txt"), segments=tuple(Segment)[:-1], shares=shares)
