"""The page in a real browser: a real server, headless Chromium; a small model, and in some tests the embedded one."""

import json
import re
import urllib.request

import pytest
from PIL import Image
from playwright.sync_api import expect

from tests.serving import served
from vtw_demo.comparison.calibration import CalibrationStore, calibrate
from vtw_demo.comparison.samples import EMBEDDED_DATA, embedded_samples
from vtw_demo.measurements.layer_sweep import choose_layer, sweep
from vtw_demo.models.image import open_picture
from vtw_demo.page.examples import load_examples
from vtw_demo.server.engine import Engine

# Generous: the machine may be doing other things. Nothing here asserts a time.
WAIT = 60_000
VERDICT = re.compile(r"(Same answer|Different answers|Same words).*(FLOPs|nothing is withdrawn)", re.DOTALL)


def wait_for_verdict(page):
    expect(page.locator("#verdict")).to_contain_text(VERDICT, timeout=WAIT)
    return page.locator("#verdict").inner_text()


def wait_for_attention(page, layer):
    expect(page.locator("#attention .annotation-text", has_text=f"withdrawn at layer {layer}")).to_be_visible(
        timeout=WAIT
    )


def ask(page, question):
    page.get_by_label("Question").fill(question)
    page.get_by_role("button", name="Run", exact=True).click()


def move_slider(page, layer):
    number = page.locator("#layer input[type=number]")
    number.fill(str(layer))
    number.press("Enter")


def answer(page, run):
    return page.locator(f"#{run} .answer").inner_text()


@pytest.fixture(params=["small", "embedded"])
def either_page(request, open_page):
    """The page of the small model, and of the embedded one."""
    return open_page(request.getfixturevalue("server" if request.param == "small" else "embedded_server"))


def test_the_first_example_is_answered_unasked(either_page):
    page = either_page
    wait_for_verdict(page)
    assert answer(page, "full").strip()
    assert answer(page, "withdrawn").strip()
    wait_for_attention(page, 8)
    expect(page.locator("#attention-reading")).to_contain_text("of the attention")


def test_a_question_is_answered_twice_and_the_slider_reruns_the_withdrawn_side(either_page):
    page = either_page
    wait_for_attention(page, 8)
    ask(page, "How many objects are there?")
    expect(page.locator("#verdict [data-of*='How many objects']")).to_be_visible(timeout=WAIT)
    wait_for_verdict(page)
    wait_for_attention(page, 8)
    full = page.locator("#full").inner_text()
    move_slider(page, 3)
    expect(page.locator("#withdrawn h3")).to_contain_text("layer 3", timeout=WAIT)
    wait_for_attention(page, 3)
    assert wait_for_verdict(page)
    # Not one of its figures is measured again: the full run was left alone.
    assert page.locator("#full").inner_text() == full


def test_runs_that_newer_ones_end_leave_the_page_as_it_is(page):
    wait_for_attention(page, 8)
    question = page.locator("#question textarea").input_value()
    slider = page.locator("#layer input[type=range]")
    slider.focus()
    for key, layer in (("ArrowLeft", 3), ("ArrowRight", 8)) * 2:
        for _ in range(5):
            slider.press(key)
        expect(page.locator("#withdrawn h3")).to_contain_text(f"layer {layer}", timeout=WAIT)
        wait_for_attention(page, layer)
        assert wait_for_verdict(page)
        assert slider.input_value() == page.locator("#layer input[type=number]").input_value() == str(layer)
    assert page.locator("#question textarea").input_value() == question
    expect(page.locator("#picture img")).to_be_visible()


def test_another_method_beside_has_its_card_time_and_stairs(page):
    wait_for_verdict(page)
    full = page.locator("#full .figures").inner_text()
    page.locator("#beside-choice input").click()
    page.get_by_role("option", name="FastV").click()
    expect(page.locator("#verdict")).to_contain_text("Beside it, FastV", timeout=WAIT)
    card = page.locator("#beside .answer-card")
    expect(card.locator("h3")).to_contain_text("from layer 2 on")
    expect(card).to_contain_text(re.compile(r"FLOPs, withdrawn [\d.]+ \w*FLOPs"))
    assert page.locator("#full .figures").inner_text() == full
    expect(page).to_have_url(re.compile("beside=fastv"))
    page.get_by_role("button", name="Why it works").click()
    expect(page.locator("#attention")).to_contain_text("FastV", timeout=WAIT)
    expect(page.locator("#attention-reading")).to_contain_text("Beside it, FastV", timeout=WAIT)
    page.get_by_role("tab", name="Where it looks").click()
    expect(page.locator(".map-side.beside figcaption")).to_contain_text("FastV", timeout=WAIT)
    page.get_by_role("button", name="What it saves").click()
    expect(page.locator("#staircase .legendtext", has_text="beside it")).to_be_visible(timeout=WAIT)
    page.get_by_role("tab", name="Timing").click()
    expect(page.locator("#timing .legendtext", has_text="Beside it")).to_be_visible(timeout=WAIT)
    page.locator("#rounds input").fill("2")
    page.locator("#time-again").click()
    expect(page.locator("#timing-reading")).to_contain_text("In the median of 2 interleaved rounds", timeout=WAIT)
    expect(page.locator("#timing-reading")).to_contain_text("Beside it, FastV")
    # Where less can be saved than withdrawal saves, a sentence says so.
    move_slider(page, 1)
    expect(page.locator("#verdict .problem")).to_contain_text("can't save as much as withdrawal", timeout=WAIT)
    page.locator("#beside-choice input").click()
    page.get_by_role("option", name="off").click()
    wait_for_verdict(page)
    expect(page.locator("#beside .answer-card")).to_have_count(0)


def test_no_progress_of_gradios_writes_to_what_the_page_shows(server):
    """Each would write a component's value back as it was some moments before, over one that has come meanwhile."""
    with urllib.request.urlopen(f"{server}/config") as answer:
        dependencies = json.load(answer)["dependencies"]
    shown_on = [of["show_progress_on"] for of in dependencies if of["backend_fn"] and of["outputs"] and of["targets"]]
    assert len(shown_on) > 20
    assert [components for components in shown_on if components != []] == []


def test_the_last_layer_withdraws_nothing(page):
    wait_for_attention(page, 8)
    move_slider(page, 13)
    expect(page.locator("#verdict")).to_contain_text("nothing is withdrawn", timeout=WAIT)
    assert answer(page, "full") == answer(page, "withdrawn")


def test_an_empty_question_gets_one_sentence_and_the_page_goes_on(page):
    wait_for_attention(page, 8)
    ask(page, "  ")
    expect(page.locator("#verdict")).to_contain_text("The question is empty", timeout=WAIT)
    ask(page, "What shape is it?")
    wait_for_verdict(page)


@pytest.mark.parametrize("content", [b"not a picture", b""])
def test_a_bad_picture_gets_one_sentence_and_the_page_goes_on(page, tmp_path, content):
    wait_for_attention(page, 8)
    file = tmp_path / "picture.png"
    file.write_bytes(content)
    page.get_by_label("Remove").or_(page.get_by_label("Clear")).first.click()
    with page.expect_response(re.compile("/upload")):
        page.locator("#picture input[type=file]").first.set_input_files(file)
    expect(page.locator("#picture")).to_contain_text(re.compile("not a picture|file is empty"), timeout=WAIT)
    expect(page.locator("#picture img")).to_have_count(0)
    ask(page, "What is it?")
    expect(page.locator("#verdict .problem")).to_contain_text("There is no picture", timeout=WAIT)
    assert "Traceback" not in page.content()
    page.locator("#examples button").nth(1).click()
    wait_for_verdict(page)
    expect(page.locator(".problem")).to_have_count(0)
    expect(page.locator("#picture img")).to_be_visible()


def test_an_own_picture_is_answered(page, tmp_path):
    wait_for_attention(page, 8)
    file = tmp_path / "own.jpg"
    Image.effect_noise((640, 333), 60).convert("RGB").save(file)
    page.get_by_label("Remove").or_(page.get_by_label("Clear")).first.click()
    page.locator("#picture input[type=file]").first.set_input_files(file)
    expect(page.locator("#suggestions")).to_contain_text("Describe the picture.", timeout=WAIT)
    ask(page, "Describe the picture.")
    wait_for_verdict(page)


def test_an_example_a_suggestion_and_a_random_scene_run_at_once(either_page):
    page = either_page
    wait_for_attention(page, 8)
    page.locator("#examples button").nth(2).click()
    expect(page.get_by_label("Question")).not_to_have_value(load_examples()[0].question, timeout=WAIT)
    wait_for_verdict(page)
    suggestion = page.locator("#suggestions button").last
    text = suggestion.inner_text()
    suggestion.click()
    expect(page.get_by_label("Question")).to_have_value(text, timeout=WAIT)
    wait_for_verdict(page)
    picture = page.locator("#picture img").first.get_attribute("src")
    page.get_by_role("button", name="New scene").click()
    expect(page.locator("#picture img").first).not_to_have_attribute("src", picture, timeout=WAIT)
    wait_for_verdict(page)


def test_stop_ends_the_run_and_leaves_the_page_working(page):
    wait_for_attention(page, 8)
    page.locator("#max-new-tokens input[type=number]").fill("900")
    page.get_by_label("Question").fill("Describe the scene. " * 3)
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#verdict")).not_to_contain_text("Running", timeout=WAIT)
    expect(page.locator("#verdict")).to_contain_text(re.compile("Stopped|answer"), timeout=WAIT)
    page.locator("#max-new-tokens input[type=number]").fill("8")
    ask(page, "What shape is it?")
    wait_for_verdict(page)


def test_the_attention_of_an_answer_token_is_shown_when_clicked(page):
    wait_for_attention(page, 8)
    strip = page.locator("#attention-strip")
    strip.get_by_role("button", name="mean over the answer").click()
    expect(page.locator("#attention-reading")).to_contain_text("the answer's tokens", timeout=WAIT)
    strip.get_by_role("button").nth(2).click()
    expect(page.locator("#attention-reading")).to_contain_text("the answer's token 1", timeout=WAIT)
    expect(strip.get_by_role("button").nth(2)).to_have_attribute("aria-pressed", "true", timeout=WAIT)


def test_a_phone_has_no_sideways_scrolling(open_page, server):
    page = open_page(server, 390, 844)
    wait_for_verdict(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def wait_for_sweep(page):
    expect(page.locator("#live .live[data-layer]")).to_be_visible(timeout=WAIT)


@pytest.fixture(scope="module")
def first_example_kl(small):
    """The divergence of the first example's question at each K, from the library."""
    example = load_examples()[0]
    return sweep(small.model, small.prepare(open_picture(example.picture), example.question)).kl[0].tolist()


def test_the_slider_is_live_while_it_is_dragged_and_no_run_is_started(page, first_example_kl):
    wait_for_sweep(page)
    wait_for_attention(page, 8)
    withdrawn, verdict = page.locator("#withdrawn").inner_text(), page.locator("#verdict").inner_text()
    requests = []
    page.on("request", lambda request: requests.append(request.url))
    track = page.locator("#layer input[type=range]").bounding_box()
    middle = track["y"] + track["height"] / 2

    def place(layer):
        # The thumb's middle stays half a thumb's width inside the track.
        return track["x"] + 8 + (layer - 1) / 12 * (track["width"] - 16)

    page.mouse.move(place(8), middle)
    page.mouse.down()
    for layer in (*range(8, 0, -1), *range(1, 14)):
        page.mouse.move(place(layer), middle)
        live = page.locator(f'#live .live[data-layer="{layer}"]')
        expect(live).to_be_visible(timeout=WAIT)
        if layer == 13:
            expect(live).to_contain_text("nothing is withdrawn")
            continue
        shown = float(re.search(r"KL ([\d.e+-]+)", live.inner_text()).group(1))
        assert shown == pytest.approx(first_example_kl[layer - 1], rel=0.06, abs=1e-5)
        expect(live).to_contain_text("fewer FLOPs")
        expect(live).to_contain_text("less cache (of the prompt)")
        assert live.locator("li").count() == 10
    # Whatever runs the model goes through the queue; the page asks now and then whether the model has been switched.
    assert not [url for url in requests if "/gradio_api/queue/join" in url]
    assert (page.locator("#withdrawn").inner_text(), page.locator("#verdict").inner_text()) == (withdrawn, verdict)
    page.mouse.up()
    expect(page.locator("#verdict")).to_contain_text("nothing is withdrawn", timeout=WAIT)


def test_the_live_line_shows_what_a_question_says_as_text(page):
    wait_for_sweep(page)
    ask(page, "What is <img src=x onerror=alert(1)> it?")
    expect(page.locator("#live .note")).to_contain_text("<img src=x onerror=alert(1)>", timeout=WAIT)
    assert page.locator("#live img").count() == 0


def test_the_live_line_says_which_k_the_question_needs_and_one_click_sets_it(
    page, small, open_page, tmp_path, first_example_kl
):
    wait_for_sweep(page)
    expect(page.locator("#live .note")).to_contain_text("No K is within a divergence of 0.003")
    # Within what the calibration asked for, where there is one.
    store, threshold = CalibrationStore.of(small, tmp_path), first_example_kl[10] * 1.01
    list(calibrate(small, embedded_samples(1), threshold, EMBEDDED_DATA, store))
    needed = choose_layer(range(1, 13), first_example_kl, threshold)
    with served(Engine(small, store), 8) as address:
        page = open_page(address)
        expect(page.locator("#live .note")).to_contain_text(f"This question needs K = {needed}", timeout=WAIT)
        wait_for_attention(page, 8)
        page.locator("#live").get_by_role("button", name="Set it").click()
        wait_for_attention(page, needed)
        expect(page.locator("#layer input[type=number]")).to_have_value(str(needed))
        expect(page.locator("#live").get_by_role("button")).to_have_count(0)


def test_choose_k_measures_samples_sets_the_slider_and_reruns_the_withdrawn_side(small, open_page, tmp_path):
    # A server of its own: a calibration is for all visitors.
    with served(Engine(small, CalibrationStore(tmp_path)), 8) as address:
        k_is_chosen(open_page(address))


# From now on, `said` has all that an element has shown, however briefly.
NOTE_WHAT_IS_SAID = """(place) => {
  window.said = [];
  const note = () => window.said.push(document.querySelector(place)?.innerText ?? "");
  new MutationObserver(note).observe(document.body, {childList: true, subtree: true, characterData: true});
}"""


def k_is_chosen(page):
    wait_for_sweep(page)
    page.evaluate(NOTE_WHAT_IS_SAID, "#choose-k-reading")
    page.get_by_role("button", name="Choose K for me").click()
    page.wait_for_function("window.said.some((text) => /Measured \\d+ of 20 samples/.test(text))", timeout=WAIT)
    expect(page.locator("#layer")).to_contain_text("Calibrated on 20 samples", timeout=WAIT)
    # While the new run is measured, the reading says that only.
    wait_for_verdict(page)
    reading = page.locator("#choose-k-reading")
    expect(reading).to_contain_text(re.compile("on 20 samples.*This question's", re.DOTALL), timeout=WAIT)
    layer = re.search(r"K = (\d+)", reading.inner_text()).group(1)
    expect(page.locator("#layer input[type=number]")).to_have_value(layer)
    expect(page.locator("#withdrawn h3")).to_contain_text(f"layer {layer}")
    expect(page.locator("#choose-k .legendtext", has_text="mean of 20 samples")).to_be_visible(timeout=WAIT)
    expect(page.locator("#choose-k .legendtext", has_text="this question")).to_be_visible()


def test_a_bad_threshold_gets_one_sentence(page):
    wait_for_sweep(page)
    page.get_by_role("button", name="Which K").click()
    page.locator("#threshold input").fill("-1")
    page.get_by_role("button", name="Choose K for me").click()
    expect(page.locator("#choose-k-reading .problem")).to_contain_text("must be a number from 0 on", timeout=WAIT)
    wait_for_verdict(page)


def test_a_second_question_goes_on_in_the_conversation(page):
    wait_for_sweep(page)
    page.get_by_role("button", name="Answers", exact=True).click()
    page.get_by_role("tab", name="Second question").click()
    reading, drawn = page.locator("#second-question-reading"), page.locator("#second-question")
    page.get_by_role("button", name="Ask on").click()
    expect(reading.locator(".problem")).to_contain_text("The question is empty", timeout=WAIT)
    page.locator("#second-question-text textarea").fill("How many things are there?")
    page.get_by_role("button", name="Ask on").click()
    rows = drawn.locator("tbody tr")
    expect(rows).to_have_count(3, timeout=WAIT)
    expect(reading).to_contain_text(
        re.compile(r"Withdrawal's memory was.*Going on takes [\d.]+ \wFLOPs.*The cache holds [\d.]+ \wB", re.DOTALL),
        timeout=WAIT,
    )
    assert "How many things are there?" in drawn.locator(".asked-on").inner_text()
    full, withdrawn, fresh = ([cell.inner_text() for cell in row.locator("th, td").all()] for row in rows.all())
    assert "K = 8" in withdrawn[0]
    assert all(cells[1].strip() for cells in (full, withdrawn, fresh))
    assert full[2] == withdrawn[2]
    assert int(withdrawn[2]) < 196 < int(fresh[2])
    for _, _, _, flops, times, cache in (full, withdrawn, fresh):
        assert re.search(r"\d FLOPs|\d \wFLOPs", flops)
        assert re.search(r"\d ms$", times)
        assert re.search(r"\d \wB$", cache)
    # It is of this conversation: another picture begins another.
    page.locator("#examples button").nth(2).click()
    expect(drawn.locator("tbody")).to_have_count(0, timeout=WAIT)
    expect(reading).to_contain_text("What each run says with the KV cache", timeout=WAIT)
    page.get_by_role("button", name="Ask on").click()
    expect(rows).to_have_count(3, timeout=WAIT)
    expect(reading).to_contain_text("Withdrawal's memory was", timeout=WAIT)


def test_answers_at_every_k_of_a_range(page):
    wait_for_sweep(page)
    page.get_by_role("button", name="Which K").click()
    page.get_by_role("tab", name="Every K").click()
    page.locator("#first-layer input").fill("3")
    page.locator("#last-layer input").fill("6")
    page.get_by_role("button", name="Answer at every K").click()
    rows = page.locator("#answers-table tbody tr")
    expect(rows.last).to_contain_text("full", timeout=WAIT)
    expect(page.locator("#every-k-reading")).to_contain_text(re.compile("(to|K =) 6"), timeout=WAIT)
    wait_for_verdict(page)
    expect(page.locator("#every-k .js-plotly-plot")).to_be_visible(timeout=WAIT)
    layers = [row.inner_text().split()[:3] for row in rows.all()]
    assert [" ".join(words) for words in layers[:-1]] == ["K = 3", "K = 4", "K = 5", "K = 6"]
    full = answer(page, "full").strip()
    for row in rows.all()[:-1]:
        text, kind = row.locator("td").first.inner_text().strip(), row.get_attribute("class")
        assert (text == full) == ("same" in kind)
    page.locator("#last-layer input").fill("99")
    page.get_by_role("button", name="Answer at every K").click()
    expect(page.locator("#every-k-reading .problem")).to_contain_text("must lie within 1 to 13", timeout=WAIT)


def test_word_by_word_has_a_cell_for_each_layer_and_token(page):
    wait_for_sweep(page)
    page.get_by_role("button", name="Which K").click()
    page.get_by_role("tab", name="Word by word").click()
    expect(page.locator("#word-by-word .js-plotly-plot")).to_be_visible(timeout=WAIT)
    expect(page.locator("#word-by-word-reading")).to_contain_text(re.compile("token", re.IGNORECASE))
    heatmap = page.evaluate("document.querySelector('#word-by-word .js-plotly-plot').data[0]")
    assert len(heatmap["customdata"]) == 12
    assert "".join(cell[0] for cell in heatmap["customdata"][0]).replace("(end)", "").strip() == answer(page, "full")


# The word that Gradio's stream of results is closed comes late, as on a slow way to the server.
CLOSE_LATE = """{
  const ask = window.fetch;
  window.fetch = async (...given) => {
    const answer = await ask(...given);
    if (!String(given[0]?.url ?? given[0]).includes("/queue/data")) return answer;
    const late = new TransformStream({
      async transform(chunk, out) {
        if (new TextDecoder().decode(chunk).includes("close_stream")) {
          window.closing?.();
          await new Promise((go) => setTimeout(go, 60));
        }
        out.enqueue(chunk);
      },
    });
    return new Response(answer.body.pipeThrough(late), {headers: answer.headers, status: answer.status});
  };
}"""


def test_an_event_that_joins_while_the_stream_closes_is_answered(browser, server):
    context = browser.new_context()
    context.add_init_script(CLOSE_LATE)
    page = context.new_page()
    page.goto(server)
    wait_for_attention(page, 8)
    wait_for_sweep(page)
    mean, first = (page.locator("#attention-strip button").nth(index) for index in (1, 2))
    page.evaluate("""() => {
      const mean = document.querySelectorAll("#attention-strip button")[1];
      window.closing = () => { window.closing = null; mean.click(); };
    }""")
    first.click()
    expect(mean).to_have_attribute("aria-pressed", "true", timeout=WAIT)
    context.close()


# The word of the next tab that is chosen comes half a second late.
OPENED_LATE = """() => {
  const ask = window.fetch;
  window.fetch = async (...given) => {
    if (!String(given[0]?.url ?? given[0]).includes("/run/predict")) return ask(...given);
    window.fetch = ask;
    await new Promise((go) => setTimeout(go, 500));
    const answer = await ask(...given);
    window.hasCome = true;
    return answer;
  };
}"""


def test_of_two_tabs_chosen_in_quick_succession_the_later_is_drawn(page):
    wait_for_verdict(page)
    page.evaluate(OPENED_LATE)
    page.get_by_role("tab", name="Where it looks").click()
    page.get_by_role("button", name="What it saves").click()
    page.wait_for_function("window.hasCome")
    move_slider(page, 6)
    expect(page.locator("#staircase-reading")).to_contain_text("From layer 6 on", timeout=WAIT)
