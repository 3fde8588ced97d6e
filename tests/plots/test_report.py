"""The report in a real browser that has no network."""

import base64
import json
import re

import pytest

from vtw_demo.comparison.compare import ask_on, turns_of
from vtw_demo.comparison.machine import this_machine
from vtw_demo.plots.report import plot_html, report_data, report_html
from vtw_demo.plots.tab import View
from vtw_demo.plots.tabs import GROUPS, TABS, all_plots


@pytest.fixture(scope="module")
def report(analysis):
    return report_html(analysis, None, this_machine())


@pytest.fixture
def opened(report, browser, tmp_path):
    """The report as a page of a browser, and what it asked the net for or complained of."""
    file = tmp_path / "report.html"
    file.write_text(report, encoding="utf-8")
    page, wrong = browser.new_page(viewport={"width": 1200, "height": 900}), []
    page.on("request", lambda request: wrong.append(request.url) if request.url != file.as_uri() else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.goto(file.as_uri())
    yield page
    page.close()
    assert not [said for said in wrong if not said.startswith(("data:", "blob:"))]


def test_it_opens_offline_with_every_plot(opened, analysis):
    plots, missing = all_plots(analysis, View())
    assert not missing
    assert len(plots) == 8
    for plot in plots:
        section = opened.locator(f"#{plot.name}")
        assert plot.reading in section.inner_text()
        if not isinstance(plot.drawing, str):
            section.locator(".main-svg").first.wait_for(timeout=30_000)
    text = opened.locator("body").inner_text()
    for said in ("Describe the <b>picture</b>.", analysis.comparison.full.answer, "4 of 13", "torch"):
        assert said in text


def test_numbers_in_plots_are_those_of_the_json(opened, analysis):
    href = opened.locator("a[download='comparison.json']").get_attribute("href")
    data = json.loads(base64.b64decode(href.partition("base64,")[2]))
    drawn = opened.evaluate(
        "document.querySelector('#attention .js-plotly-plot').data.map(t => [t.name, Array.from(t.y)])"
    )
    segments = data["attention"]["full"]["segments"]
    for run, traces in (("full", drawn[: len(segments)]), ("withdrawn", drawn[len(segments) :])):
        for index, (name, shares) in enumerate(traces):
            assert name == segments[index]
            expected = [100 * layer[index] for layer in data["attention"][run]["last_prompt"]]
            assert shares == pytest.approx(expected, abs=1e-4)
    assert data["comparison"]["layer"] == 4
    assert data["verdict"] == opened.locator(".verdict").inner_text()
    assert data["machine"]["versions"]["torch"]


def test_a_listener_can_follow_each_sentence(analysis):
    for plot in all_plots(analysis, View())[0]:
        assert not re.search(r";|\(|KL [\d.]|e-\d", plot.reading), plot.reading


def test_sections_stand_under_their_groups(opened):
    headings = opened.locator("main h2, main h3").all()
    groups = [heading.inner_text() for heading in headings if heading.evaluate("h => h.tagName") == "H2"]
    assert groups == list(GROUPS)
    first = opened.locator("h2", has_text=groups[1]).locator("xpath=following-sibling::section[1]")
    assert first.get_attribute("id") == GROUPS[groups[1]][0].name


def test_csv_links_hold_each_plots_numbers(opened, analysis):
    for plot in all_plots(analysis, View())[0]:
        href = opened.locator(f"#{plot.name} a[download='{plot.name}.csv']").get_attribute("href")
        assert base64.b64decode(href.partition("base64,")[2]).decode() == plot.table().to_csv()


def test_the_layer_slider_of_the_maps_works_in_the_report(opened):
    slider = opened.locator("#where-it-looks input[type=range]")
    slider.fill("2")
    assert "layer 2" in opened.locator("#where-it-looks").inner_text()


def test_it_fits_a_phone(report, browser, tmp_path):
    file = tmp_path / "report.html"
    file.write_text(report, encoding="utf-8")
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto(file.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.close()


def test_nothing_in_it_is_fetched_and_text_is_escaped(report):
    outside = re.sub(r"<script>.*?</script>", "", report, flags=re.DOTALL)
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", outside)
    assert "<b>picture</b>" not in outside
    assert "default-src 'none'" in report


def test_a_second_question_has_its_section(analysis, browser, tmp_path):
    asked = analysis.at(analysis.comparison)
    turns, then = turns_of(asked.comparison, asked.layer), "How many <i>things</i> are there?"
    *_, asked.follow_up = ask_on(asked.vlm, asked.prompt, turns, then, asked.layer, 4)
    (plot,) = (plot for plot in all_plots(asked, View())[0] if plot.name == "second-question")
    assert not re.search(r";|\(", plot.reading)
    file = tmp_path / "report.html"
    file.write_text(report_html(asked, None, this_machine()), encoding="utf-8")
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto(file.as_uri())
    section = page.locator("#second-question")
    assert plot.reading in section.inner_text()
    assert then in section.inner_text()
    answers = [row.locator("td").first.inner_text() for row in section.locator("tbody tr").all()]
    made = (asked.follow_up.full, asked.follow_up.withdrawn, asked.follow_up.fresh)
    assert answers == [run.answer for run in made]
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.close()


def test_one_plot_is_a_page_of_its_own(analysis):
    plot = TABS[0].plot(analysis, View())
    page = plot_html(plot)
    assert plot.title in page
    assert plot.reading in page


def test_data_is_complete_and_plain(analysis):
    data = report_data(analysis, None, this_machine())
    assert json.loads(json.dumps(data)).keys() == {
        "made", "machine", "verdict", "comparison", "attention", "patches", "attention_maps", "migration", "staircase",
        "layer_times", "timing", "follow_up", "sweep", "probabilities", "calibration",
    }  # fmt: skip
