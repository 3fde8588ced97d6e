"""Every tab of the page in a real browser: what is drawn, taken away, restored and remembered."""

import html
import json
import re
import zipfile

import pytest
from PIL import Image
from playwright.sync_api import expect

from tests.grids import nightly_but
from tests.page.test_browser import WAIT, answer, ask, move_slider, wait_for_attention, wait_for_verdict
from vtw_demo.page.examples import load_examples

FIGURES = {"Attention": "attention", "Migration": "migration", "Staircase": "staircase", "Timing": "timing",
           "Choose K": "choose-k", "Word by word": "word-by-word"}  # fmt: skip
GROUPS = {"Why it works": ["Attention", "Where it looks", "Migration"], "What it saves": ["Staircase", "Timing"],
          "Which K": ["Choose K", "Every K", "Word by word"], "Answers": ["Differences", "Second question"],
          "Session": ["History", "Take away"]}  # fmt: skip
SECTIONS = FIGURES | {"Where it looks": "where-it-looks", "Differences": "differences"}

# From now on, `repeated` has what was begun by setInterval and hasn't ended.
NOTE_WHAT_IS_REPEATED = """() => {
  const [begin, end] = [window.setInterval, window.clearInterval];
  window.repeated = new Set();
  window.setInterval = (...given) => {
    const id = begin(...given);
    window.repeated.add(id);
    return id;
  };
  window.clearInterval = (id) => {
    window.repeated.delete(id);
    end(id);
  };
}"""


def open_tab(page, title):
    group = next(group for group, titles in GROUPS.items() if title in titles)
    page.locator("#groups").get_by_role("button", name=group, exact=True).click()
    page.get_by_role("tab", name=title, exact=True).click()


def wait_until_drawn(page, title):
    name = SECTIONS[title]
    drawn = ".main-svg" if title in FIGURES else ".attention-map" if title == "Where it looks" else ".explained"
    expect(page.locator(f"#{name} {drawn}").first).to_be_visible(timeout=WAIT)
    expect(page.locator(f"#{name}-reading .waiting")).to_have_count(0, timeout=WAIT)


def wait_for_section(page, title):
    """Until the plot in an opened tab is drawn, and its sentence says something of it."""
    open_tab(page, title)
    wait_until_drawn(page, title)
    name = SECTIONS[title]
    sentence = page.locator(f"#{name}-reading").inner_text()
    assert re.search(r"\d", sentence)
    return sentence


def take(page, button):
    with page.expect_download(timeout=WAIT) as download:
        page.locator(button).click()
    return download.value


@pytest.fixture
def data(page):
    """The comparison's JSON, as the page hands it out."""
    wait_for_attention(page, 8)
    open_tab(page, "Take away")
    return json.loads(take(page, "#take-data").path().read_text())


def test_every_tab_is_measured_when_it_is_opened_and_again_for_another_layer(page):
    wait_for_attention(page, 8)
    sentences = {title: wait_for_section(page, title) for title in SECTIONS}
    assert len(set(sentences.values())) == len(SECTIONS)
    open_tab(page, "Staircase")
    move_slider(page, 4)
    expect(page.locator("#staircase-reading")).to_contain_text("layer 4", timeout=WAIT)
    expect(page.locator("#verdict")).not_to_contain_text("Running", timeout=WAIT)
    open_tab(page, "Where it looks")
    expect(page.locator("#where-it-looks .map-side.withdrawn")).to_contain_text("layer 4", timeout=WAIT)


def test_numbers_in_plots_are_those_of_the_json(page, data):
    def drawn(name):
        wait_for_section(page, next(title for title, section in SECTIONS.items() if section == name))
        return page.evaluate(
            "(name) => document.querySelector(`#${name} .js-plotly-plot`).data.map((trace) => ({name: trace.name, "
            "y: Array.from(trace.y), z: trace.z && trace.z.map((row) => Array.from(row)), "
            "said: trace.customdata && JSON.parse(JSON.stringify(trace.customdata))}))",
            name,
        )

    segments = data["attention"]["full"]["segments"]
    bars = drawn("attention")
    for run, traces in (("full", bars[:5]), ("withdrawn", bars[5:10])):
        for index, trace in enumerate(traces):
            expected = [100 * shares[index] for shares in data["attention"][run]["last_prompt"]]
            assert trace["name"] == segments[index]
            assert trace["y"] == pytest.approx(expected, abs=1e-4)
    heatmap = next(trace for trace in drawn("migration") if trace["z"])
    by_token = [list(row) for row in zip(*data["migration"]["distance"], strict=True)]
    assert [pytest.approx(row, abs=1e-6) for row in by_token] == heatmap["z"]
    stairs = [trace["y"] for trace in drawn("staircase") if "in all" in trace["name"]]
    for heights, run in zip(stairs, ("full", "withdrawn"), strict=True):
        assert set(heights) == {cost["tokens"] for cost in data["staircase"][run]}
    times = drawn("timing")
    assert times[0]["y"][1] == pytest.approx(data["comparison"]["full"]["prefill_ms"], rel=1e-6)
    assert times[1]["y"][3] == pytest.approx(data["comparison"]["withdrawn"]["total_ms"], rel=1e-6)
    kl = next(trace for trace in drawn("choose-k") if trace["name"] == "this question")
    assert kl["said"] == pytest.approx(data["sweep"]["kl"], rel=1e-6)
    assert [row[0][2] for row in drawn("word-by-word")[0]["said"]] == pytest.approx(
        [row[0] for row in data["sweep"]["answer_kl"]], rel=1e-6
    )


def test_the_map_plays_through_the_layers_and_its_shares_are_the_jsons(page, data):
    wait_for_section(page, "Where it looks")
    root = page.locator("#where-it-looks .attention-map")
    (maps,) = data["attention_maps"]
    for layer in (0, 3, 11):
        root.locator("input[type=range]").fill(str(layer))
        caption = root.locator(".map-side.full .map-caption:not([hidden])").inner_text()
        share = 100 * sum(maps["full"]["weights"][layer])
        said = re.search(r": (less than )?([\d.]+) %", caption)
        assert float(said.group(2)) == pytest.approx(share, abs=0.51)
        withdrawn = root.locator(".map-side.withdrawn .map-caption:not([hidden])")
        assert ("no visual token" in withdrawn.inner_text()) == (layer >= 8)
    root.locator(".map-small").nth(2).click()
    assert root.locator("output").inner_text() == "2"
    page.evaluate(NOTE_WHAT_IS_REPEATED)
    root.get_by_role("button", name="Play").click()
    expect(root.locator("output")).to_have_text("4", timeout=WAIT)
    assert page.evaluate("repeated.size") == 1
    root.get_by_role("button", name="Pause").click()
    assert page.evaluate("repeated.size") == 0, "nothing is left that would bring the next layer"
    root.get_by_label("same scale in all layers").check()
    assert "same-scale" in root.get_attribute("class")
    page.locator("#map-strip button").nth(1).click()
    expect(page.locator("#map-strip button").nth(1)).to_have_attribute("aria-pressed", "true", timeout=WAIT)


def test_words_of_both_answers_show_their_probabilities(page, data):
    wait_for_section(page, "Differences")
    first = data["probabilities"]["full"][0]
    shown = page.locator("#differences .explained").first.get_attribute("aria-label")
    assert first["text"].strip() in shown
    assert re.search(r"full [\d.]+ %, withdrawn", shown)


def test_times_are_measured_again_in_rounds(page):
    wait_for_attention(page, 8)
    open_tab(page, "Timing")
    page.locator("#rounds input").fill("3")
    page.get_by_role("button", name="Measure again").click()
    expect(page.locator("#timing-reading")).to_contain_text("3 interleaved rounds", timeout=WAIT)
    expect(page.locator("#verdict")).to_contain_text("Median of 3 rounds", timeout=WAIT)
    open_tab(page, "Take away")
    data = json.loads(take(page, "#take-data").path().read_text())
    assert data["verdict"] == page.locator("#verdict").inner_text()
    assert data["verdict"] in html.unescape(take(page, "#take-report").path().read_text())
    open_tab(page, "Timing")
    page.locator("#rounds input").fill("1000")
    page.get_by_role("button", name="Measure again").click()
    expect(page.locator("#timing-reading .problem")).to_contain_text("rounds must be from 1 to 100", timeout=WAIT)
    expect(page.locator("#verdict")).to_contain_text("Median of 3 rounds")


def test_the_sliders_k_stands_in_the_plot_of_every_k(page):
    wait_for_attention(page, 8)
    wait_for_section(page, "Choose K")
    marked = page.locator("#choose-k .shapelayer .shape-label", has_text="K = ")
    expect(marked).to_have_text("K = 8", timeout=WAIT)
    move_slider(page, 3)
    expect(marked).to_have_text("K = 3", timeout=WAIT)


def test_measuring_again_can_be_stopped(page):
    wait_for_attention(page, 8)
    open_tab(page, "Timing")
    page.locator("#rounds input").fill("100")
    page.get_by_role("button", name="Measure again").click()
    expect(page.locator("#timing-reading")).to_contain_text("of 100 rounds", timeout=WAIT)
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#timing-reading")).to_contain_text("Stopped after", timeout=WAIT)
    wait_for_verdict(page)


def test_each_plot_can_be_taken_away(page):
    wait_for_attention(page, 8)
    for title, name in SECTIONS.items():
        wait_for_section(page, title)
        table = take(page, f"#{name}-csv")
        assert table.suggested_filename == f"{name}.csv"
        lines = table.path().read_text().splitlines()
        assert len(lines) > 2
        assert "," in lines[0]
        if name != "differences":
            picture = take(page, f"#{name}-png")
            assert picture.suggested_filename == f"{name}.png"
            with Image.open(picture.path()) as image:
                assert image.format == "PNG"
                assert image.width > 300
    page_of_plot = take(page, "#differences-html").path().read_text()
    assert page_of_plot.startswith("<!DOCTYPE html>")
    assert page.locator("#differences-reading").inner_text() in page_of_plot


def test_report_and_all_tables_can_be_taken_away(page, browser, tmp_path):
    wait_for_attention(page, 8)
    open_tab(page, "Take away")
    with zipfile.ZipFile(take(page, "#take-tables").path()) as archive:
        assert set(archive.namelist()) == {f"{name}.csv" for name in SECTIONS.values()}
    report = take(page, "#take-report")
    assert report.suggested_filename == "vtw-report.html"
    file = tmp_path / "report.html"
    report.save_as(file)
    opened, asked = browser.new_page(), []
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto(file.as_uri())
    for name in FIGURES.values():
        expect(opened.locator(f"#{name} .main-svg").first).to_be_visible(timeout=WAIT)
    assert answer(page, "full") in opened.locator("body").inner_text()
    assert all(url.startswith(("file:", "data:", "blob:")) for url in asked)
    opened.close()
    wait_for_verdict(page)


def test_a_link_restores_picture_question_and_layer(page, browser, server):
    wait_for_attention(page, 8)
    page.locator("#examples button").nth(2).click()
    expect(page.get_by_label("Question")).not_to_have_value(load_examples()[0].question, timeout=WAIT)
    ask(page, "How many objects are there?")
    wait_for_verdict(page)
    move_slider(page, 5)
    wait_for_attention(page, 5)
    open_tab(page, "Take away")
    link = page.locator("#link input, #link textarea").first.input_value()
    assert f"example={load_examples()[2].picture.stem}" in link
    other = browser.new_page(viewport={"width": 1440, "height": 900})
    other.goto(link)
    wait_for_attention(other, 5)
    assert other.get_by_label("Question").input_value() == "How many objects are there?"
    assert answer(other, "full") == answer(page, "full")
    assert other.locator("#layer input[type=number]").input_value() == "5"
    other.close()


def test_a_random_scenes_link_draws_it_again(page, browser):
    wait_for_attention(page, 8)
    page.get_by_role("button", name="New scene").click()
    expect(page.get_by_label("Question")).not_to_have_value(load_examples()[0].question, timeout=WAIT)
    wait_for_verdict(page)
    wait_for_attention(page, 8)
    page.wait_for_url("**scene=**", timeout=WAIT)
    link = page.url
    other = browser.new_page()
    other.goto(link)
    wait_for_attention(other, 8)
    assert answer(other, "full") == answer(page, "full")
    assert other.get_by_label("Question").input_value() == page.get_by_label("Question").input_value()
    other.close()


def clear_picture(page):
    page.get_by_label("Remove").or_(page.get_by_label("Clear")).first.click()


def test_a_link_to_an_own_picture_runs_nothing_and_says_so(page, tmp_path):
    wait_for_attention(page, 8)
    Image.effect_noise((300, 300), 60).convert("RGB").save(tmp_path / "own.png")
    clear_picture(page)
    page.locator("#picture input[type=file]").first.set_input_files(tmp_path / "own.png")
    expect(page.locator("#suggestions")).to_contain_text("Describe the picture.", timeout=WAIT)
    ask(page, "What is this?")
    page.wait_for_url("**picture=own**", timeout=WAIT)
    page.reload()
    expect(page.locator("#picture")).to_contain_text("isn't here: choose it", timeout=WAIT)
    expect(page.locator("#verdict .problem")).to_contain_text("There is no picture", timeout=WAIT)
    expect(page.locator("#full .figures")).to_have_count(0)
    assert page.get_by_label("Question").input_value() == "What is this?"
    page.locator("#examples button").nth(1).click()
    wait_for_verdict(page)
    clear_picture(page)
    expect(page.locator("#picture input[type=file]").first).to_be_attached()
    expect(page.locator("#picture")).not_to_contain_text("isn't here", timeout=WAIT)


def test_back_goes_to_the_comparison_before_and_the_history_stays(page):
    wait_for_attention(page, 8)
    first = page.get_by_label("Question").input_value()
    ask(page, "How many objects are there?")
    page.wait_for_url("**question=How**", timeout=WAIT)
    open_tab(page, "History")
    rows = page.locator("#history-table tbody tr")
    expect(rows).to_have_count(2, timeout=WAIT)
    # Kept by the browser once the run's last step is done.
    kept = "localStorage.getItem('vtw-demo-history')"
    page.wait_for_function(f"window.before = window.before ?? {kept}.length, {kept}.length > 0", timeout=WAIT)
    move_slider(page, 4)
    expect(rows).to_have_count(3, timeout=WAIT)
    page.wait_for_function(f"{kept}.length > window.before", timeout=WAIT)
    page.go_back()
    page.wait_for_url("**layer=8**", timeout=WAIT)
    wait_for_attention(page, 8)
    expect(page.get_by_label("Question")).to_have_value("How many objects are there?", timeout=WAIT)
    page.go_back()
    expect(page.get_by_label("Question")).to_have_value(first, timeout=WAIT)
    wait_for_attention(page, 8)
    open_tab(page, "History")
    expect(rows.last).to_contain_text(first)
    expect(page.locator("#overlay .main-svg").first).to_be_visible(timeout=WAIT)


def test_the_history_survives_a_reload_that_answers_nothing(page, server):
    wait_for_attention(page, 8)
    question = page.get_by_label("Question").input_value()
    page.wait_for_function("localStorage.getItem('vtw-demo-history')?.length > 1000", timeout=WAIT)
    page.goto(f"{server}/?picture=own")
    expect(page.locator("#verdict .problem")).to_contain_text("There is no picture", timeout=WAIT)
    open_tab(page, "History")
    expect(page.locator("#history-table tbody tr")).to_have_count(1, timeout=WAIT)
    expect(page.locator("#history-table tbody tr")).to_contain_text(question)


def older(page):
    """What is dimmed, by its first class or its id, and the word that says of which it is."""
    marked = [(one.get_attribute("id"), one) for one in page.locator("[data-older]").all()]
    return {(name or one.get_attribute("class").split()[0], one.get_attribute("data-older")) for name, one in marked}


def test_what_is_of_other_controls_is_dimmed_until_it_is_replaced(page):
    wait_for_attention(page, 8)
    expect(page.locator("#live .live[data-layer]")).to_be_visible(timeout=WAIT)
    asked = page.get_by_label("Question").input_value()
    expect(page.locator("[data-older]")).to_have_count(0)
    page.get_by_label("Question").fill("What shape is it?")
    expect(page.locator("#full [data-older]")).to_be_visible()
    parts = ("answer-card", "verdict", "reading", "attention", "live")
    assert older(page) == {(part, f"Still of “{asked}”") for part in parts}
    page.get_by_label("Question").fill(asked)
    expect(page.locator("[data-older]")).to_have_count(0)
    page.locator("#layer input[type=range]").press("ArrowLeft")
    expect(page.locator("#withdrawn [data-older]")).to_have_attribute("data-older", "Still of K = 8")
    expect(page.locator("#full [data-older]")).to_have_count(0)
    move_slider(page, 4)
    wait_for_attention(page, 4)
    expect(page.locator("[data-older]")).to_have_count(0, timeout=WAIT)
    clear_picture(page)
    expect(page.locator("#full [data-older]")).to_have_attribute("data-older", "Still of another picture", timeout=WAIT)


def test_a_plot_is_dimmed_while_it_is_measured_anew(page):
    wait_for_attention(page, 8)
    wait_for_section(page, "Staircase")
    open_tab(page, "Timing")
    wait_until_drawn(page, "Timing")
    move_slider(page, 4)
    expect(page.locator("#timing-reading")).to_contain_text("withdrawn", timeout=WAIT)
    expect(page.locator("#withdrawn h3")).to_contain_text("layer 4", timeout=WAIT)
    # Whatever is on the page of K = 8 says so, also in a tab that isn't in view.
    expect(page.locator("#staircase[data-older]")).to_have_attribute("data-older", "Still of K = 8", timeout=WAIT)
    open_tab(page, "Staircase")
    expect(page.locator("#staircase-reading")).to_contain_text("layer 4", timeout=WAIT)
    expect(page.locator("#staircase[data-older]")).to_have_count(0)


CONTRAST = """(selector) => {
    const shown = document.querySelector(selector), canvas = document.createElement("canvas").getContext("2d");
    canvas.canvas.width = canvas.canvas.height = 1;
    const seen = (colour, under) => {
        for (const layer of [under, colour]) {
            canvas.fillStyle = layer;
            canvas.fillRect(0, 0, 1, 1);
        }
        return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map((value) => value / 255);
    };
    const luminance = (rgb) =>
        rgb.map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
            .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
    const style = getComputedStyle(shown), body = getComputedStyle(document.body).backgroundColor;
    const light = [seen(style.color, style.backgroundColor), seen(style.backgroundColor, body)].map(luminance);
    return (Math.max(...light) + 0.05) / (Math.min(...light) + 0.05);
}"""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_different_answers_look_and_read_well(open_page, embedded_server, theme):
    page = open_page(
        f"{embedded_server}/?example=two-shapes&question=What%20shape%20is%20it%3F&layer=1&__theme={theme}"
    )
    expect(page.locator("#verdict .verdict.differs")).to_contain_text("Different answers: word 1", timeout=WAIT)
    assert page.evaluate(CONTRAST, "#verdict .verdict") >= 4.5
    for run in ("full", "withdrawn"):
        marked = page.locator(f"#{run} mark")
        expect(marked).to_have_count(1)
        assert marked.inner_text() in page.locator("#verdict").inner_text()
        assert page.evaluate(CONTRAST, f"#{run} mark") >= 4.5


def test_old_messages_go_with_their_cause(page):
    wait_for_attention(page, 8)
    ask(page, " ")
    expect(page.locator("#verdict .problem")).to_be_visible(timeout=WAIT)
    page.get_by_label("Question").fill("What is it?")
    expect(page.locator("#verdict .problem")).to_be_hidden()


def test_a_link_that_cannot_be_restored_says_so(open_page, server):
    page = open_page(f"{server}/?example=two-shapes&layer=99&question=What%20is%20it%3F")
    expect(page.locator("#note .problem")).to_contain_text("from 1 to 13; this is '99'", timeout=WAIT)
    wait_for_verdict(page)
    wait_for_attention(page, 8)
    expect(page.locator("#note .problem")).to_be_visible()
    move_slider(page, 4)
    expect(page.locator("#note")).to_be_hidden(timeout=WAIT)


def test_two_comparisons_of_the_history_are_overlaid(page):
    wait_for_attention(page, 8)
    move_slider(page, 4)
    wait_for_attention(page, 4)
    ask(page, "How many objects are there?")
    wait_for_attention(page, 4)
    open_tab(page, "History")
    rows = page.locator("#history-table tbody tr")
    expect(rows.first).to_contain_text("How many objects", timeout=WAIT)
    assert rows.count() >= 3  # the slider may have asked again when it was left
    expect(page.locator("#overlay .main-svg").first).to_be_visible(timeout=WAIT)
    expect(page.locator("#overlay-reading")).to_contain_text(re.compile(r"K = 4"), timeout=WAIT)


def test_terms_are_explained_and_the_page_says_what_it_shows(page):
    wait_for_verdict(page)
    term = page.locator("#full .term", has_text="KV cache")
    assert "KV cache: The keys and values" in term.get_attribute("aria-description")
    page.get_by_text("What am I looking at?").click()
    expect(page.locator(".about")).to_contain_text("takes them out before the withdrawal layer K")


@pytest.mark.parametrize("width", nightly_but((360, 1440), (360, 720, 768, 1024, 1440, 1920)))
def test_each_group_and_each_of_its_tabs_is_reached_and_none_scrolls_sideways(open_page, server, width):
    page = open_page(server, width, 900)
    wait_for_verdict(page)
    groups = page.locator("#groups").get_by_role("button")
    assert groups.all_inner_texts() == list(GROUPS)
    for group, titles in GROUPS.items():
        groups.get_by_text(group, exact=True).click()
        expect(groups.and_(page.locator("[aria-current=true]"))).to_have_text(group)
        for title in titles:
            page.get_by_role("tab", name=title, exact=True).click()
            expect(page.locator("#tabs [role=tab]:visible")).to_have_text(titles)
            expect(page.get_by_role("tab", selected=True)).to_have_text(title)
            if title in SECTIONS:
                wait_until_drawn(page, title)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, title


def test_a_group_opens_at_the_tab_that_was_last_open_in_it(page):
    wait_for_attention(page, 8)
    for title in ("Migration", "Timing"):
        open_tab(page, title)
    page.get_by_role("button", name="Why it works").click()
    expect(page.get_by_role("tab", selected=True)).to_have_text("Migration")


def test_one_screen_tells_the_story(open_page, embedded_server):
    page = open_page(embedded_server, 1440, 900)
    wait_for_attention(page, 8)
    for part in ("#picture", "#question", "#layer", "#full", "#withdrawn", "#verdict", "#attention .main-svg"):
        box = page.locator(part).first.bounding_box()
        assert box["y"] >= 0
        assert box["y"] + box["height"] <= 900, part
