"""What a second question is answered with what each run has kept, and with all of it read again."""

from vtw_demo.comparison.compare import RunName
from vtw_demo.comparison.follow_up import FollowUp
from vtw_demo.comparison.timed_generate import Run
from vtw_demo.plots.tab import Table
from vtw_demo.plots.templates import TEMPLATES, reading

NAMES: dict[RunName, str] = {
    "full": "full, goes on with its cache",
    "withdrawn": "withdrawn at K = {K}, goes on with its cache",
    "fresh": "full, reads the whole conversation again",
}


def _rows(follow_up: FollowUp) -> list[tuple[RunName, str, int, Run]]:
    further, total = follow_up.further_tokens, follow_up.tokens
    lengths: dict[RunName, int] = {"full": further, "withdrawn": further, "fresh": total}
    return [(run, name.format(K=follow_up.layer), lengths[run], getattr(follow_up, run)) for run, name in NAMES.items()]


def second_question_html(follow_up: FollowUp) -> str:
    """The question, and a row for each run: what it said, and what that cost."""
    return TEMPLATES.get_template("second_question.html").render(follow_up=follow_up, rows=_rows(follow_up))


def second_question_reading(follow_up: FollowUp) -> str:
    return reading("second_question", follow_up=follow_up)


def second_question_table(follow_up: FollowUp) -> Table:
    columns = ("run", "answer", "tokens read", "prefill FLOPs", "encode (ms)", "prefill (ms)", "KV cache (bytes)")
    rows = [
        (name, run.answer, count, run.prefill_flops, run.encode_ms, run.prefill_ms, run.kv_cache_bytes)
        for _, name, count, run in _rows(follow_up)
    ]
    return Table(columns, tuple(rows))
