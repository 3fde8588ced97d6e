"""The one sentence above the two answers."""

from itertools import zip_longest

from vtw_demo.comparison.compare import Comparison


def verdict(comparison: Comparison) -> str:
    """Whether the answers are the same, and where not; what withdrawal saved, or cost."""
    return f"{_answers(comparison)} {_savings(comparison)}"


def _answers(comparison: Comparison) -> str:
    if comparison.same_answer:
        return "Same answer."
    full, withdrawn = comparison.full.answer.split(), comparison.withdrawn.answer.split()
    for number, (word, other) in enumerate(zip_longest(full, withdrawn), start=1):
        if word == other:
            continue
        if other is None:
            return f"Different answers: withdrawn, the answer ends before word {number}, “{word}”."
        if word is None:
            return f"Different answers: withdrawn, the answer goes on with word {number}, “{other}”."
        return f"Different answers: word {number} is “{word}”, and “{other}” when withdrawn."
    # The same words, made of other tokens or ended elsewhere.
    token = (comparison.first_difference or 0) + 1
    return f"Same words, but other tokens from token {token} on."


def _savings(comparison: Comparison) -> str:
    if comparison.layer == comparison.layers:
        return f"At layer {comparison.layer} of {comparison.layers} nothing is withdrawn: both runs did the same work."
    full, withdrawn = comparison.full, comparison.withdrawn
    speed = _speed(full.prefill_ms, withdrawn.prefill_ms)
    flops = _change(full.prefill_flops, withdrawn.prefill_flops, "fewer", "more")
    cache = _change(full.kv_cache_bytes, withdrawn.kv_cache_bytes, "smaller", "larger")
    return f"Prefill {speed}, {flops} FLOPs, cache {cache}."


def _speed(before: float, after: float) -> str:
    if after <= 0 or before <= 0:
        return "too short to time"
    faster, slower = f"{before / after:.1f}", f"{after / before:.1f}"
    if faster == slower:
        return "about as fast"
    return f"{faster} times as fast" if before > after else f"slower: it took {slower} times as long"


def _change(before: int, after: int, less: str, more: str) -> str:
    change = round(100 * (after - before) / before)
    return f"{abs(change)} % {more if change > 0 else less}"
