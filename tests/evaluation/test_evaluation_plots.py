import pytest

from vtw_demo.evaluation.evaluation import ALL, Evaluation, Figures, PrefillTime
from vtw_demo.evaluation.metrics import Estimate
from vtw_demo.evaluation.plots import (
    evaluation_figure,
    evaluation_markdown,
    evaluation_reading,
    evaluation_table,
    kinds_figure,
)
from vtw_demo.evaluation.variants import FULL, Variant

VARIANTS = (FULL, Variant("withdrawn", 4), Variant("withdrawn", 9), Variant("random_tokens", 9), Variant("blind"))
ACCURACY = {
    "colour": (1.0, 0.5, 1.0, 0.25, 0.0),
    "shape": (0.5, 0.5, 0.5, 0.25, 0.0),
    ALL: (0.75, 0.5, 0.75, 0.25, 0.0),
}
LEFT = (1.0, 0.4, 0.8, 0.8, 0.1)


def exactly(mean):
    return Estimate(mean, mean - 0.1, mean + 0.1)


def evaluation(flops=LEFT):
    figures = {
        kind: {
            way: Figures(8, exactly(right), exactly(right - row[0]), exactly(right / row[0]), exactly(0.5), left)
            for way, right, left in zip(VARIANTS, row, flops, strict=True)
        }
        for kind, row in ACCURACY.items()
    }
    times = {way: PrefillTime((20.0 * left,), (left,)) for way, left in zip(VARIANTS, LEFT, strict=True)}
    return Evaluation("some data", 12, 8, 4, 32, "exact_match", figures, times, answered=8, seconds=2.0)


def test_accuracy_and_agreement_stand_against_the_flops_left():
    figure = evaluation_figure(evaluation())
    curve = figure.data[0]
    assert curve.name == "accuracy"
    assert list(curve.x) == pytest.approx([40, 80, 100])
    assert list(curve.y) == pytest.approx([50, 75, 75])
    assert list(curve.error_y.array) == pytest.approx([10, 10, 10])
    assert {trace.name for trace in figure.data} == {
        *(
            "accuracy",
            "accuracy, random_tokens",
            "accuracy, blind",
            "agreement",
            "agreement, random_tokens",
            "agreement, blind",
        ),
    }


def test_where_costs_are_not_known_they_stand_against_k():
    curve = evaluation_figure(evaluation((None,) * len(VARIANTS))).data[0]
    assert list(curve.x) == [4, 9, 12]


def test_a_line_for_each_kind_of_question():
    figure = kinds_figure(evaluation(), calibrated=9)
    assert [trace.name for trace in figure.data] == ["colour (8)", "shape (8)", "all (8)"]
    assert list(figure.data[0].x) == [4, 9, 12]
    assert list(figure.data[0].y) == pytest.approx([50, 100, 100])
    assert figure.layout.annotations[0].text == "K = 9"


def test_the_sentence_says_what_is_kept_and_saved():
    assert evaluation_reading(evaluation(), 4) == (
        "On some data (8 questions), withdrawal at K = 4 is right in 50.0 % and the full model in 75.0 % (-25.0 "
        "points, -35.0 to -15.0), and 66.7 % of the answers are the full model's with 40 % of the prefill's FLOPs."
    )


def test_tables_have_every_kind_and_way():
    table = evaluation_table(evaluation())
    assert len(table.rows) == len(ACCURACY) * len(VARIANTS)
    markdown = evaluation_markdown(evaluation(), calibrated=9)
    assert "| K = 9 (calibrated) | 75.0 % (65.0 to 85.0) |" in markdown
    assert "| colour | 8 | 50.0 % | 100.0 % | 100.0 % |" in markdown
