"""The one sentence above the two answers."""

from vtw_demo.comparison.compare import Comparison
from vtw_demo.comparison.repeated_timing import RepeatedTiming
from vtw_demo.formats import count, milliseconds


def verdict(comparison: Comparison, timing: RepeatedTiming | None = None) -> str:
    """Whether the answers are the same, and where not; what withdrawal saved, or cost; the time of one run each, or of
    more where `timing` has them."""
    return f"{_answers(comparison)} {_savings(comparison, timing)}"


def _answers(comparison: Comparison) -> str:
    if comparison.same_answer:
        return "Same answer, right or wrong."
    full, withdrawn = comparison.full.answer.split(), comparison.withdrawn.answer.split()
    number = comparison.first_differing_word
    if number is None:  # made of other tokens, or ended elsewhere
        others = "tokens" if comparison.full.answer == comparison.withdrawn.answer else "spaces"
        return f"Same words, but other {others} from token {comparison.first_difference} on."
    if number > len(withdrawn):
        return f"Different answers: withdrawn, the answer ends before word {number}, “{full[number - 1]}”."
    if number > len(full):
        return f"Different answers: withdrawn, the answer goes on with word {number}, “{withdrawn[number - 1]}”."
    return f"Different answers: word {number} is “{full[number - 1]}”, and “{withdrawn[number - 1]}” when withdrawn."


def _savings(comparison: Comparison, timing: RepeatedTiming | None) -> str:
    if comparison.layer == comparison.layers:
        return f"At layer {comparison.layer} of {comparison.layers} nothing is withdrawn: both runs did the same work."
    full, withdrawn = comparison.full, comparison.withdrawn
    flops = _change(full.prefill_flops, withdrawn.prefill_flops, "fewer", "more")
    cache = _change(full.kv_cache_bytes, withdrawn.kv_cache_bytes, "less", "more")
    tokens, others = len(full.tokens), len(withdrawn.tokens)
    answers = "answer" if tokens == others else f"answers of {tokens} and {count(others, 'token')}"
    return f"{flops} FLOPs (prompt only), {cache} cache (with {answers}). {_time(comparison, timing)}"


def _time(comparison: Comparison, timing: RepeatedTiming | None) -> str:
    ratio = None if timing is None else timing.ratio("prefill_ms")
    if timing is None or ratio is None or timing.rounds == 1:
        before, after = (milliseconds(run.prefill_ms) for run in (comparison.full, comparison.withdrawn))
        return f"In one run, prefill {after} instead of {before}."
    taken = f"{ratio.median:.2f} ({ratio.lowest:.2f} to {ratio.highest:.2f}) times as long"
    return f"Median of {timing.rounds} rounds (lowest to highest): prefill {taken}."


def _change(before: int, after: int, less: str, more: str) -> str:
    change = round(100 * (after - before) / before)
    return f"{abs(change)} % {more if change > 0 else less}"
