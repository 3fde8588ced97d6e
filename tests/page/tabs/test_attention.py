"""What the attention's tabs say of a model; and their switch in a real browser, of a model with planted sinks."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from playwright.sync_api import expect

from tests.page.tabs.test_tab import wait_until
from tests.page.test_browser import WAIT, ask, move_slider, wait_for_attention, wait_for_verdict
from tests.page.test_sections import open_tab, take, wait_for_section
from tests.saved_models import save_small
from tests.serving import served
from vtw_demo.comparison.calibration import CalibrationStore
from vtw_demo.models.image import open_picture
from vtw_demo.models.loading import load
from vtw_demo.page.examples import load_examples
from vtw_demo.page.tabs import attention
from vtw_demo.page.tabs.attention import AttentionTab, read_choice
from vtw_demo.plots.tab import ANSWER_MEAN, ATTENTION, CONTRIBUTION, COSINE, LAST_PROMPT
from vtw_demo.server.engine import Engine

DIMENSION, PATCH = 37, 30  # where the sinks are planted


def test_what_a_button_says_is_read_back():
    assert read_choice(LAST_PROMPT) == LAST_PROMPT
    assert read_choice("mean over the answer&#x27;s tokens".replace("&#x27;", "'")) == ANSWER_MEAN
    assert read_choice("3") == 3
    with pytest.raises(ValueError, match="nonsense"):
        read_choice("nonsense")


def test_of_the_embedded_model_it_says_where_it_looks(vlm, tmp_path, monkeypatch):
    tab = object.__new__(AttentionTab)
    file = tmp_path / "embedded.json"
    monkeypatch.setattr(attention, "EVALUATION", file)
    assert tab._where_it_looks(vlm) == ""
    shares = [(0.5, 0.0, 0.3, 0.2, 0.0)] * vlm.layers
    file.write_text(json.dumps({"attention": {"samples": 7, "shares": shares}}))
    assert "This model, over 7 questions: Of the attention" in tab._where_it_looks(vlm)
    assert tab._where_it_looks(replace(vlm, name="another")) == ""
    file.write_text(json.dumps({"attention": {"samples": 7, "shares": shares[1:]}}))
    assert tab._where_it_looks(vlm) == ""


@pytest.fixture(scope="module")
def with_sinks(tmp_path_factory):
    """A small model, wide enough for massive activations: the first token has one, and one patch of any picture."""
    folder = tmp_path_factory.mktemp("wide")
    save_small(folder, hidden_size=512)
    vlm, example = load(str(folder), device="cpu"), load_examples()[0]
    prompt = vlm.prompt(open_picture(example.picture), example.question)
    projector, seen = vlm.model.model.multi_modal_projector, []
    with torch.no_grad():
        # Of its own: else it would say the first token, or never.
        vlm.model.lm_head.weight = torch.nn.Parameter(vlm.model.lm_head.weight.clone())
        vlm.model.get_input_embeddings().weight[prompt.inputs["input_ids"][0, 0], DIMENSION] = 10_000
        vlm.model.model.vision_tower.embeddings.position_embedding.weight[1 + PATCH, 0] = 1000
        handle = projector.register_forward_pre_hook(lambda module, args: seen.append(args[0][0, :, 0]))
        vlm.model(**prompt.inputs)
        handle.remove()
        *_, second, largest = seen[0].sort().values.tolist()
        projector.linear_1.weight[DIMENSION] = projector.linear_2.weight[DIMENSION] = 0
        projector.linear_1.weight[DIMENSION, 0] = 10
        projector.linear_1.bias[DIMENSION] = -5 * (second + largest)
        projector.linear_2.weight[DIMENSION, DIMENSION] = 1000
    return vlm


@pytest.fixture(scope="module")
def address(with_sinks, tmp_path_factory):
    with served(Engine(with_sinks, CalibrationStore(tmp_path_factory.mktemp("calibration"))), 8) as address:
        yield address


@pytest.fixture
def page(open_page, address):
    page = open_page(address)
    wait_for_verdict(page)
    wait_for_attention(page, 8)
    return page


def numbers(page):
    """The comparison's JSON, as the page hands it out."""
    open_tab(page, "Take away")
    return json.loads(take(page, "#take-data").path().read_text())


def choice(page, tab, quantity):
    return page.locator(f"#{tab}-quantity").get_by_label(quantity, exact=True)


def wait_until_drawn_as(page, mass, quantity):
    """Until the plot shows that quantity of the last prompt token's, in both runs."""
    expected = []
    for run in mass.values():
        if quantity == COSINE:
            expected.append(run["cosine"][0])
            continue
        by_layer = run["last_prompt"] if quantity == ATTENTION else run["contribution"][0]
        expected += [[100 * share for share in of_segment] for of_segment in zip(*by_layer, strict=True)]

    def is_drawn():
        drawn = page.evaluate(
            "document.querySelector('#attention .js-plotly-plot').data.map((trace) => Array.from(trace.y))"
        )
        return len(drawn) == len(expected) and np.allclose(drawn, expected, atol=1e-3)

    wait_until(is_drawn)


def test_the_switch_changes_plot_and_sentence_and_holds_for_the_next_run(page):
    mass, reading = numbers(page)["attention"], page.locator("#attention-reading")
    open_tab(page, "Attention")
    wait_until_drawn_as(page, mass, ATTENTION)
    expect(reading).to_contain_text("The first token is a sink by its activations in 13 of 13 layers.")
    choice(page, "attention", CONTRIBUTION).check()
    expect(reading).to_contain_text("each weight times the norm of its value, of the last prompt token", timeout=WAIT)
    wait_until_drawn_as(page, mass, CONTRIBUTION)
    choice(page, "attention", COSINE).check()
    lowest = min(mass["full"]["cosine"][0])
    expect(reading).to_contain_text(f"{lowest:.3f} in layer", timeout=WAIT)
    wait_until_drawn_as(page, mass, COSINE)
    page.locator("#attention-strip button").nth(2).click()
    expect(reading).to_contain_text("attention's output of the answer's token 1", timeout=WAIT)
    move_slider(page, 3)
    wait_for_attention(page, 3)
    expect(reading).to_contain_text("From layer 3 on the lowest is", timeout=WAIT)
    ask(page, "How many things are there?")
    expect(page.locator("#verdict [data-of*='How many things']")).to_be_visible(timeout=WAIT)
    expect(page.locator("#attention-reading [data-of*='How many things']")).to_contain_text("cosine", timeout=WAIT)
    expect(choice(page, "attention", COSINE)).to_be_checked()
    wait_until_drawn_as(page, numbers(page)["attention"], COSINE)
    open_tab(page, "Attention")
    choice(page, "attention", ATTENTION).check()
    expect(reading).to_contain_text("of the attention of the last prompt token", timeout=WAIT)


def caption(page):
    return page.locator("#where-it-looks .map-side.full .map-caption p:not([hidden])")


def share_said(page):
    return float(re.search(r": ([\d.]+) %", caption(page).inner_text())[1])


def check_outline(page):
    """Of the one patch that is a sink: of 14 in a row, the third of the third; the picture's edges are cut off."""
    drawn = page.locator("#where-it-looks .map-side.full .map-sinks:visible path").get_attribute("d", timeout=WAIT)
    sides = re.fullmatch(r"M(\S+) (\S+)H(\S+)V(\S+)H(\S+)Z", drawn).groups()
    assert [float(side) for side in sides] == pytest.approx([100 * place / 14 for place in (2, 2, 3, 3, 2)], abs=0.2)


def shading(page, layer):
    return page.locator("#where-it-looks .attention-map").evaluate(
        f"(root) => root.style.getPropertyValue('--full-{layer}')"
    )


def test_the_maps_switch_changes_shades_and_sentences_and_the_sinks_stay_outlined(page):
    (maps,) = numbers(page)["attention_maps"]
    assert "sink, outlined: visual token 30." in wait_for_section(page, "Where it looks")
    root, reading = page.locator("#where-it-looks"), page.locator("#where-it-looks-reading")
    root.locator("input[type=range]").fill("2")
    check_outline(page)
    assert share_said(page) == pytest.approx(100 * sum(maps["full"]["weights"][2]), abs=0.51)
    shades = shading(page, 2)
    choice(page, "where-it-looks", CONTRIBUTION).check()
    expect(reading).to_contain_text("each weight times the norm of its value, that the picture gets", timeout=WAIT)
    expect(root.locator(".map-legend")).to_contain_text("of the attention times value norm on a patch", timeout=WAIT)
    root.locator("input[type=range]").fill("2")
    expect(caption(page)).to_contain_text("of the attention times value norm is on the picture", timeout=WAIT)
    assert share_said(page) == pytest.approx(100 * sum(maps["full"]["contribution"][2]), abs=0.51)
    assert shading(page, 2) != shades
    expect(reading).to_contain_text("1 patch is a sink, outlined: visual token 30.")
    check_outline(page)
    move_slider(page, 3)
    expect(root.locator(".map-side.withdrawn")).to_contain_text("withdrawn at layer 3", timeout=WAIT)
    expect(caption(page)).to_contain_text("of the attention times value norm is on the picture", timeout=WAIT)
    expect(choice(page, "where-it-looks", CONTRIBUTION)).to_be_checked()
    root.locator("input[type=range]").fill("5")
    check_outline(page)
    expect(root.locator(".map-side.withdrawn .map-sinks:visible")).to_have_count(0)
