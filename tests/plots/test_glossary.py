import io
import re
from html import unescape

import pytest
from PIL import Image, ImageChops

from vtw_demo.plots.glossary import TERMS, WHAT_AM_I_LOOKING_AT, term
from vtw_demo.plots.report import PLOTS_CSS


def labels(html):
    return [unescape(label) for label in re.findall(r'tabindex="0" role="term" aria-description="([^"]*)"', html)]


def shown(html):
    return unescape(re.sub(r"<[^>]*>", "", html))


@pytest.mark.parametrize("name", TERMS)
def test_each_term_is_explained_in_one_sentence(name):
    sentence = TERMS[name]
    assert re.fullmatch(r"[A-Z][^.!?]*\.", sentence)
    html = term(name)
    assert labels(html) == [f"{name}: {sentence}"]
    assert shown(html) == name


def test_a_term_may_be_shown_by_other_words_which_are_escaped():
    html = term("decode", 'decode, <b>"per" token')
    assert shown(html) == 'decode, <b>"per" token'
    assert labels(html) == [f"decode: {TERMS['decode']}"]
    assert "<b>" not in html


def test_what_am_i_looking_at_is_a_minutes_text_with_terms():
    text = shown(WHAT_AM_I_LOOKING_AT.replace("<", " <"))
    assert 150 <= len(text.split()) <= 200
    for topic in ("Attention", "Where it looks", "Migration", "Staircase", "Timing", "slider", "the answer may change"):
        assert topic in text
    assert f"withdrawal layer K: {TERMS['withdrawal layer K']}" in labels(WHAT_AM_I_LOOKING_AT)


def test_the_sentence_is_shown_on_focus_and_hover_inside_the_window(browser):
    page = browser.new_page(viewport={"width": 390, "height": 500})
    try:
        terms = "".join(f'<p style="text-align: {side}">{term("FLOPs")}</p>' for side in ("left", "center", "right"))
        page.set_content(f"<style>{PLOTS_CSS} :root {{--body-text-color: #f00}}</style>{terms}")
        assert drawn_in_red(page) is None
        for index in range(3):
            for show in ("focus", "hover"):
                getattr(page.locator(".term").nth(index), show)()
                left, right = drawn_in_red(page)
                assert 0 < left < right < 389
                assert right - left > 200
                page.evaluate("document.activeElement.blur()")
                page.mouse.move(200, 400)
    finally:
        page.close()


def drawn_in_red(page):
    """The first and the last column of the window with pure red, the tooltip's background; None if there is none."""
    red, green, blue = Image.open(io.BytesIO(page.screenshot())).convert("RGB").split()
    found = ImageChops.subtract(red, ImageChops.lighter(green, blue)).point(lambda value: 255 if value > 250 else 0)
    box = found.getbbox()
    return None if box is None else (box[0], box[2] - 1)
