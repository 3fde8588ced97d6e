"""The two answers with what they cost, and the sentence above them, as HTML. All text in it is escaped."""

from dataclasses import dataclass
from functools import partial

from vtw_demo.comparison.analysis import Analysis
from vtw_demo.comparison.compare import RunName, RunProgress
from vtw_demo.comparison.timed_generate import Run
from vtw_demo.plots.glossary import term
from vtw_demo.plots.templates import TEMPLATES


@dataclass(frozen=True)
class AnswerCard:
    """What is known of one run so far: its `progress`, and the `result` once it is complete.

    `differing_word`: the first that isn't the other run's, counted from 1. `of`: on the page, what was asked.
    """

    run: RunName
    layer: int
    progress: RunProgress | None = None
    result: Run | None = None
    differing_word: int | None = None
    of: str = ""

    def to_html(self) -> str:
        return TEMPLATES.get_template("answer_card.html").render(card=self, term=term)


def answer_cards(analysis: Analysis, of: str = "") -> dict[RunName, str]:
    """Both, their first differing word marked."""
    comparison = analysis.comparison
    results: dict[RunName, Run] = {"full": comparison.full, "withdrawn": comparison.withdrawn}
    card = partial(AnswerCard, layer=analysis.layer, differing_word=comparison.first_differing_word, of=of)
    return {run: card(run, result=result).to_html() for run, result in results.items()}


def verdict_html(analysis: Analysis, note: str = "", of: str = "") -> str:
    """What the comparison comes to, and a `note` of its picture."""
    is_same, template = analysis.comparison.same_answer, TEMPLATES.get_template("verdict.html")
    return template.render(sentence=analysis.verdict, is_same=is_same, note=note, of=of)
