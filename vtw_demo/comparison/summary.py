"""The one sentence above the two answers."""

from pathlib import Path

from vtw_demo.comparison.compare import Comparison
from vtw_demo.comparison.repeated_timing import RepeatedTiming
from vtw_demo.formats import sentences


def verdict(comparison: Comparison, timing: RepeatedTiming | None = None) -> str:
    """Whether the answers are the same, and where not; what withdrawal saved, or cost; the time of one run each, or of
    more where `timing` has them."""
    ratio = None if timing is None or timing.rounds == 1 else timing.ratio("prefill_ms")
    return sentences(Path(__file__).with_name("verdict.txt"), comparison=comparison, timing=timing, ratio=ratio)
