"""What papers say of where a model's attention goes, to stand beside its own."""

from collections.abc import Mapping
from dataclasses import dataclass

from vtw_demo.files import data_beside
from vtw_demo.models.vision_language_model import VisionLanguageModel
from vtw_demo.withdrawal.segments import Segment


@dataclass(frozen=True)
class PublishedLine:
    """Shares of attention that a paper gives for some layers; what is between them is drawn, not published."""

    name: str
    segment: Segment  # in whose colour it is drawn
    source: str
    shares: Mapping[str, float]  # by the layer's number, or "last"

    def layers(self, count: int) -> list[int]:
        """Of a model that has so many."""
        return [count - 1 if layer == "last" else int(layer) for layer in self.shares]

    @property
    def percents(self) -> list[float]:
        return [100 * share for share in self.shares.values()]


LLAVA = tuple(
    PublishedLine(**{**line, "segment": Segment(line["segment"])})
    for line in data_beside(__file__, "published_attention.json")
)


def published_lines(vlm: VisionLanguageModel) -> tuple[PublishedLine, ...]:
    """Those of LLaVA-1.5 where the model is one, by its architecture and the name of its checkpoint or folder."""
    is_llava = vlm.model.config.model_type == "llava" and "llava-1.5" in vlm.name.lower()
    return LLAVA if is_llava else ()
