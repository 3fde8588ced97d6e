"""Where the answers part: both, token by token, with each token's probability in both runs. All text is escaped."""

from collections.abc import Sequence
from difflib import SequenceMatcher

from vtw_demo.comparison.compare import RunName
from vtw_demo.formats import percent
from vtw_demo.measurements.token_probabilities import AnswerProbabilities, AnswerToken
from vtw_demo.plots.style import shown_tokens
from vtw_demo.plots.tab import Table
from vtw_demo.plots.templates import TEMPLATES, reading


def differences_html(probabilities: AnswerProbabilities) -> str:
    """Both answers, the first difference framed, what differs after it underlined; two bars under each token are its
    probability, in the full run and withdrawn."""
    first = probabilities.first_difference
    return TEMPLATES.get_template("differences.html").render(
        answers={"full": _words(probabilities.full, first), "withdrawn": _words(probabilities.withdrawn, first)},
        layer=probabilities.layer,
        first=first,
        differing=_differing(probabilities),
        names=_names(probabilities),
        exact=_exact,
    )


def differences_reading(probabilities: AnswerProbabilities) -> str:
    return reading(
        "differences",
        layer=probabilities.layer,
        first=probabilities.first_difference,
        full=probabilities.full,
        withdrawn=probabilities.withdrawn,
        least=min(probabilities.full, key=lambda token: min(token.full, token.withdrawn)),
        names=_names(probabilities),
    )


def differences_table(probabilities: AnswerProbabilities) -> Table:
    rows = [
        (run, number, token.text, 100 * token.full, 100 * token.withdrawn)
        for run, answer in (("full", probabilities.full), ("withdrawn", probabilities.withdrawn))
        for number, token in enumerate(answer, start=1)
    ]
    return Table(("answer", "token (counted from 1)", "text", "full (%)", "withdrawn (%)"), tuple(rows))


def _differing(probabilities: AnswerProbabilities) -> dict[RunName, set[int]]:
    """By run, the numbers of the tokens from the first difference on that have no counterpart in the other answer."""
    first = probabilities.first_difference or 1
    answers = (probabilities.full, probabilities.withdrawn)
    full, withdrawn = ([token.token_id for token in answer[first - 1 :]] for answer in answers)
    differing: dict[RunName, set[int]] = {"full": set(), "withdrawn": set()}
    for kind, begin, end, other_begin, other_end in SequenceMatcher(None, full, withdrawn, False).get_opcodes():
        if kind != "equal":
            differing["full"].update(range(first + begin, first + end))
            differing["withdrawn"].update(range(first + other_begin, first + other_end))
    return differing


def _words(answer: Sequence[AnswerToken], first: int | None) -> list[list[tuple[int, AnswerToken | None]]]:
    """The answer's tokens with their numbers, by word; none stands where it stops and the other goes on."""
    words: list[list[tuple[int, AnswerToken | None]]] = []
    for number, token in enumerate(answer, start=1):
        if number == 1 or token.text[:1].isspace() or token.text == "(end)":
            words.append([])
        words[-1].append((number, token))
    return [*words, [(number + 1, None)]] if first == number + 1 else words


def _names(probabilities: AnswerProbabilities) -> dict[str, str]:
    """The texts of all tokens as they are shown."""
    return shown_tokens(*(token.text for token in (*probabilities.full, *probabilities.withdrawn)))


def _exact(probability: float) -> str:
    """With a digit after the point, so that 98.2 % and 98.4 % are told apart."""
    return f"{100 * probability:.1f} %" if probability >= 0.001 else percent(probability)
