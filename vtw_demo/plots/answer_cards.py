"""The two answers with what they cost, and the sentence above them, as HTML. All text in it is escaped."""

from dataclasses import dataclass, replace
from functools import partial

from vtw_demo.comparison.analysis import Analysis
from vtw_demo.comparison.compare import RunName, RunProgress
from vtw_demo.comparison.timed_generate import Run
from vtw_demo.formats import run_title
from vtw_demo.measurements.equal_flops import recipe_in_words
from vtw_demo.measurements.token_probabilities import first_difference
from vtw_demo.plots.glossary import term
from vtw_demo.plots.templates import TEMPLATES


@dataclass(frozen=True)
class AnswerCard:
    """What is known of one run so far: its `progress`, and the `result` once it is complete."""

    run: RunName
    layer: int
    progress: RunProgress | None = None
    result: Run | None = None
    differing_word: int | None = None  # the first that isn't the other run's, counted from 1
    recipe: str | None = None  # of a run beside both, or its rival's name
    withdrawn_flops: int | None = None  # to stand beside those of such a run
    encoded_once: bool = False  # the other run took the picture as this one had encoded it
    of: str = ""  # on the page, what was asked
    sharing: int = 1  # how many replicas computed on the same CPU

    def to_html(self) -> str:
        said = None if self.recipe is None else recipe_in_words(self.recipe)
        is_automatic = self.result is not None and self.result.chosen_layer is not None
        title = run_title(self.run, self.layer, said, is_automatic)
        return TEMPLATES.get_template("answer_card.html").render(card=self, title=title, term=term)


def answer_cards(analysis: Analysis, of: str = "") -> dict[RunName, str]:
    """Both, their first differing word marked; and the run beside them, if there is one, beside the full one's."""
    comparison = analysis.comparison
    word, once = comparison.first_differing_word, comparison.encoded_once
    shared = analysis.vlm.sharing
    card = partial(AnswerCard, layer=analysis.layer, differing_word=word, encoded_once=once, of=of, sharing=shared)
    cards = {run: card(run, result=getattr(comparison, run)) for run in comparison.runs()}
    if comparison.beside is not None:
        word = first_difference(comparison.full.answer.split(), comparison.beside.answer.split())
        flops = comparison.withdrawn.prefill_flops
        beside = card("beside", result=comparison.beside, differing_word=word)
        cards["beside"] = replace(beside, recipe=comparison.recipe, withdrawn_flops=flops)
    return {run: one.to_html() for run, one in cards.items()}


def verdict_html(analysis: Analysis, note: str = "", of: str = "") -> str:
    is_same, template = analysis.comparison.same_answer, TEMPLATES.get_template("verdict.html")
    return template.render(sentence=analysis.verdict, is_same=is_same, note=note, of=of)
