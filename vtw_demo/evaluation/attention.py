"""Where a model looks: each layer's shares of attention, the mean over a data set's questions."""

from collections.abc import Iterable, Sequence

from vtw_demo.comparison.data_rows import DataSample
from vtw_demo.formats import markdown_table, percent
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
    rows = [
        (str(layer), *(percent(share) for share in of_layer[:-1]))
        for layer, of_layer in enumerate(shares)
        if of_layer is not None
    ]
    return markdown_table(("layer", *(segment.value for segment in tuple(Segment)[:-1])), rows)
