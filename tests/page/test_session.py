import pytest

from vtw_demo.measurements.attention import AttentionMass
from vtw_demo.page.html import history_table
from vtw_demo.page.session import KEPT_COMPARISONS, Session
from vtw_demo.page.tabs.history import choices

SHARES = ((0.5, 0.5),) * 12


@pytest.fixture
def session(make_comparison, make_run):
    session = Session()
    full = AttentionMass(("image", "question"), SHARES, (), 196)
    withdrawn = AttentionMass(("image", "question"), SHARES[:6] + ((0.0, 1.0),) * 6, (), 196, 6)
    for answer in ("red", "<b>blue</b>"):
        session.remember(make_comparison(withdrawn=make_run(answer, (1,))), full, withdrawn, (0.1,) * 11)
    return session


def test_the_latest_comes_first_and_text_is_escaped(session):
    table = history_table(session.history)
    assert table.index("&lt;b&gt;blue") < table.index("<td>red</td><td>red</td>")
    assert "<b>" not in table


def test_choices_name_number_layer_and_question(session):
    assert choices(session.history) == [
        ("1: K = 6, What color is it?", 1),
        ("2: K = 6, What color is it?", 2),
    ]
    assert session.past(2) is session.history[1]
    assert session.past(3) is None
    assert session.past(None) is None


def test_the_oldest_are_dropped_and_numbers_go_on(session):
    past = session.history[0]
    overlaid = past.overlaid
    for _ in range(KEPT_COMPARISONS):
        session.remember(past.comparison, overlaid.mass_full, overlaid.mass_withdrawn, overlaid.kl)
    assert len(session.history) == KEPT_COMPARISONS
    assert [session.history[0].number, session.history[-1].number] == [3, KEPT_COMPARISONS + 2]


def test_the_browser_keeps_the_history(session):
    again = Session()
    again.restore(session.kept())
    assert again.history == session.history


@pytest.mark.parametrize(
    "change",
    [
        lambda kept: "",
        lambda kept: None,
        lambda kept: "{",
        lambda kept: kept.replace('"kl"', '"divergence"'),
        lambda kept: kept.replace('"layer":6', '"layer":"six"'),
    ],
)
def test_a_history_of_another_version_is_left(session, change):
    again = Session()
    again.restore(change(session.kept()))
    assert again.history == []


def test_what_a_new_request_ends_is_said_unless_it_is_of_the_same_kind():
    session = Session()
    session.begin("the calibration")
    assert session.ended == ""
    first = session.stop
    session.begin("the comparison in hand")
    assert first.is_set()
    assert session.ended == "This ended the calibration."
    session.begin("the comparison in hand")
    assert session.ended == ""
