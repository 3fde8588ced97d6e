from vtw_demo.plots.answer_cards import AnswerCard


def test_whatever_is_shown_is_escaped(make_run):
    answer = AnswerCard("full", 6, result=make_run("<b>red</b>")).to_html()
    assert "<b>" not in answer
    assert "&lt;b&gt;red" in answer


def test_a_run_in_hand_shows_its_text_and_tokens():
    answer = AnswerCard("withdrawn", 6, "There is", 2, is_running=True).to_html()
    assert "There is" in answer
    assert "2 tokens so far" in answer
    assert "withdrawn at layer 6" in answer


def test_figures_come_with_their_units(make_run):
    shown = AnswerCard("full", 6, result=make_run(prefill_flops=2_610_000_000, kv_cache_bytes=3_850_000)).to_html()
    for figure in ("5.00 ms", "40.0 ms", "4.00 ms", "2.61 GFLOPs", "3.85 MB"):
        assert figure in shown
    assert "GPU memory" not in shown
    assert "1.5 GB" in AnswerCard("full", 6, result=make_run(peak_memory_bytes=1_500_000_000)).to_html()
