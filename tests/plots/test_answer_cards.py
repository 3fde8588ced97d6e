from types import SimpleNamespace

import pytest

from vtw_demo.comparison.compare import RunProgress
from vtw_demo.plots.answer_cards import AnswerCard, answer_cards, verdict_html

ALONE = SimpleNamespace(sharing=1)


def test_whatever_is_shown_is_escaped(make_run):
    answer = AnswerCard("full", 6, result=make_run("<b>red</b>")).to_html()
    assert "<b>" not in answer
    assert "&lt;b&gt;red" in answer


def test_a_run_in_hand_shows_its_text_and_tokens():
    answer = AnswerCard("withdrawn", 6, RunProgress("withdrawn", "There is", 2)).to_html()
    assert "running" in answer
    assert "There is" in answer
    assert "2 tokens so far" in answer
    assert "withdrawn at layer 6" in answer


def test_figures_come_with_their_units(make_run):
    shown = AnswerCard("full", 6, result=make_run(prefill_flops=2_610_000_000, kv_cache_bytes=3_850_000)).to_html()
    for figure in ("5.00 ms", "40.0 ms", "4.00 ms", "2.61 GFLOPs", "3.85 MB"):
        assert figure in shown
    assert "GPU memory" not in shown
    assert "1.5 GB" in AnswerCard("full", 6, result=make_run(peak_memory_bytes=1_500_000_000)).to_html()


@pytest.mark.parametrize(
    ("answer", "word", "shown"),
    [
        ("a red star", 2, "a <mark>red</mark> star"),
        ("a <b> star", 2, "a <mark>&lt;b&gt;</mark> star"),
        ("a", 2, "a <mark>⌀</mark>"),
        ("", 1, "<mark>⌀</mark>"),
    ],
)
def test_the_first_differing_word_is_marked(make_run, answer, word, shown):
    card = AnswerCard("full", 6, result=make_run(answer), differing_word=word).to_html()
    assert shown in " ".join(card.split())


def test_both_cards_mark_the_same_word(make_comparison, make_run):
    comparison = make_comparison(make_run("a red star", (1, 2)), make_run("a blue star", (1, 3)))
    cards = answer_cards(SimpleNamespace(comparison=comparison, layer=6, vlm=ALONE))
    assert "<mark>red</mark>" in cards["full"]
    assert "<mark>blue</mark>" in cards["withdrawn"]
    same = answer_cards(SimpleNamespace(comparison=make_comparison(), layer=6, vlm=ALONE))
    assert "<mark>" not in same["full"] + same["withdrawn"]


def test_a_picture_that_was_encoded_once_has_its_figure_in_one_card(make_comparison, make_run):
    comparison = make_comparison(withdrawn=make_run(encode_ms=None, total_ms=29.0))
    cards = answer_cards(SimpleNamespace(comparison=comparison, layer=6, vlm=ALONE))
    assert "5.00 ms" in cards["full"]
    assert "total with encoding, 2 tokens" in cards["full"]
    assert "encoded once, used by both" in cards["withdrawn"]
    assert "total without encoding, 2 tokens" in cards["withdrawn"]
    assert "encoded once" not in "".join(
        answer_cards(SimpleNamespace(comparison=make_comparison(), layer=6, vlm=ALONE)).values()
    )


def test_a_run_beside_has_a_card_with_both_costs(make_comparison, make_run):
    beside = make_run("a blue star", (1, 3), prefill_flops=555)
    comparison = make_comparison(make_run("a red star", (1, 2)), beside=beside, recipe="2:fastv:0.25")
    cards = answer_cards(SimpleNamespace(comparison=comparison, layer=6, vlm=ALONE))
    assert list(cards) == ["full", "withdrawn", "beside"]
    assert "Beside it: FastV, 25 % of the visual tokens left from layer 2 on" in cards["beside"]
    assert "555 FLOPs, withdrawn 560 FLOPs" in cards["beside"]
    assert "<mark>blue</mark>" in cards["beside"]


def test_times_are_of_one_run(make_run):
    assert "Times of one run" in AnswerCard("full", 6, result=make_run()).to_html()


def test_a_stopped_answer_keeps_its_text_without_a_cursor():
    card = AnswerCard("full", 6, RunProgress("full", "There is", 1, is_stopped=True)).to_html()
    assert "There is" in card
    assert "Stopped after 1 token<" in card
    assert "running" not in card


def test_different_answers_have_a_look_of_their_own_and_text_is_escaped(make_comparison, make_run):
    same = SimpleNamespace(comparison=make_comparison(), verdict="<i>")
    other = SimpleNamespace(comparison=make_comparison(make_run("blue", (1,))), verdict="x")
    assert 'class="verdict"' in verdict_html(same)
    assert "&lt;i&gt; a &lt;b&gt;" in verdict_html(same, "a <b>")
    assert 'class="verdict differs"' in verdict_html(other)


def test_times_of_a_cpu_that_replicas_share_say_so(make_comparison):
    analysis = SimpleNamespace(comparison=make_comparison(), layer=6, vlm=ALONE)
    assert "share" not in "".join(answer_cards(analysis).values())
    analysis.vlm = SimpleNamespace(sharing=3)
    for card in answer_cards(analysis).values():
        assert "Times of one run, on a CPU that 3 replicas share" in card
