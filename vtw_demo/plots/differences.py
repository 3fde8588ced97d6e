"""Where the answers part: both, token by token, with each token's probability in both runs. All text is escaped."""

from collections.abc import Sequence
from difflib import SequenceMatcher

from vtw_demo.comparison.analysis import Part
from vtw_demo.comparison.compare import RunName
from vtw_demo.formats import percent
from vtw_demo.measurements.token_probabilities import AnswerProbabilities, AnswerToken
from vtw_demo.plots.style import shown_tokens
from vtw_demo.plots.tab import Tab
from vtw_demo.plots.table import Table
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
    """Where the answers part, and how likely each run finds both tokens there."""
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
    """A row for each token of both answers."""
    rows = [
        (run, number, token.text, 100 * token.full, 100 * token.withdrawn)
        for run, answer in (("full", probabilities.full), ("withdrawn", probabilities.withdrawn))
        for number, token in enumerate(answer, start=1)
    ]
    return Table(("answer", "token (counted from 1)", "text", "full (%)", "withdrawn (%)"), tuple(rows))


def _differing(probabilities: AnswerProbabilities) -> dict[RunName, set[int]]:
    """By run, the numbers of the tokens from the first difference on that have no counterpart in the other answer."""
    first = probabilities.first_difference
    if first is None:
        return {"full": set(), "withdrawn": set()}
    tails = [
        [token.token_id for token in answer[first - 1 :]] for answer in (probabilities.full, probabilities.withdrawn)
    ]
    matcher = SequenceMatcher(None, tails[0], tails[1], autojunk=False)
    full: set[int] = set()
    withdrawn: set[int] = set()
    for kind, begin, end, other_begin, other_end in matcher.get_opcodes():
        if kind != "equal":
            full.update(range(first + begin, first + end))
            withdrawn.update(range(first + other_begin, first + other_end))
    return {"full": full, "withdrawn": withdrawn}


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


TAB = Tab(
    "differences",
    "Differences",
    "Where the answers part",
    differences_html,
    differences_reading,
    differences_table,
    lambda view: (Part("probabilities"),),
    is_html=True,
)
