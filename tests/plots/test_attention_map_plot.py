"""Where it looks: what is in the fragment, and how it works in a real browser."""

import base64
import dataclasses
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from vtw_demo.formats import percent
from vtw_demo.measurements.attention import AttentionMap
from vtw_demo.measurements.patch_grid import PatchGeometry, VisualPatch
from vtw_demo.measurements.sinks import Sinks
from vtw_demo.plots.attention_map import (
    ATTENTION_MAP_SCRIPT,
    attention_map_html,
    attention_map_png,
    attention_map_reading,
    attention_map_table,
)
from vtw_demo.plots.report import PLOTS_CSS
from vtw_demo.plots.tab import CONTRIBUTION

LAYERS, LAYER = 4, 2
COLUMNS, ROWS = 4, 2
PICTURE = Image.new("RGB", (640, 320), "orange")


def grid(picture, columns, rows):
    return tuple(
        VisualPatch(picture, (column / columns, row / rows, (column + 1) / columns, (row + 1) / rows))
        for row in range(rows)
        for column in range(columns)
    )


GEOMETRY = PatchGeometry((PICTURE.size,), grid(0, COLUMNS, ROWS))
WEIGHTS = np.array(
    [
        [0.1, 0.1, 0.0, 0.0, 0.0, 0.0, 0.4, 0.0],
        [0.0, 0.0, 0.0, 0.2, 0.0, 0.05, 0.0, 0.0],
        [0.1, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        [0.0, 0.0, 0.0, 0.0, 0.007, 0.001, 0.0, 0.0],
    ]
)
BRIGHTEST = [6, 3, 0, 4]
SINKS = Sinks(((), (5,), (5,), ()), ((), (2,), (2, 7), ()), 24.0)


def attention_map(weights, layer=None):
    weights = np.array(weights)
    if layer is not None:
        weights[layer:] = 0
    return AttentionMap(weights, None, layer, weights[:, ::-1], SINKS if layer is None else None)


FULL, WITHDRAWN = attention_map(WEIGHTS), attention_map(WEIGHTS, LAYER)
RUNS = {"full": FULL, "withdrawn": WITHDRAWN}


def both(full=FULL, withdrawn=WITHDRAWN):
    return {"full": full, "withdrawn": withdrawn}


class Fragment(HTMLParser):
    """The variables of a fragment, by name, and its elements: tag, attributes and own text."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.open = [], []
        self.feed(html)
        assert not self.open
        _, root, _ = self.elements[0]
        self.variables = dict(re.findall(r"--([\w-]+):(url\([^)]*\)|[^;]*)", root["style"]))
        self.classes = root["class"].split()

    def handle_starttag(self, tag, attributes):
        element = [tag, dict(attributes), ""]
        self.elements.append(element)
        if tag != "input":
            self.open.append(element)

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        self.open[-1][2] += data

    def image(self, name):
        content = re.fullmatch(r"url\(data:image/\w+;base64,([\w+/=]+)\)", self.variables[name])[1]
        return Image.open(io.BytesIO(base64.b64decode(content)))

    def overlay(self, run, layer):
        return np.asarray(self.image(f"{run}-{layer}").convert("RGBA")).astype(int)

    def captions(self):
        texts = [text for tag, attributes, text in self.elements if tag == "p" and "data-at" in attributes]
        return texts[: len(texts) // 2], texts[len(texts) // 2 :]

    def legend(self):
        """What the brightest colour means: in each layer, and in all of them."""
        spans = [(attributes, text) for tag, attributes, text in self.elements if tag == "span"]
        own = [text for attributes, text in spans if "data-at" in attributes]
        (overall,) = (text for attributes, text in spans if attributes.get("class") == "map-overall-scale")
        return own, overall


def fragment(full=FULL, withdrawn=WITHDRAWN, geometry=GEOMETRY):
    return Fragment(attention_map_html(geometry, both(full, withdrawn), PICTURE))


def test_the_brightest_pixels_are_where_the_largest_weight_is():
    made = fragment()
    for layer, token in enumerate(BRIGHTEST):
        overlay = made.overlay("full", layer)
        height, width, _ = overlay.shape
        assert (width, height) == (336, 168)
        brightness = overlay[..., :3].sum(-1) * overlay[..., 3]
        rows, columns = np.nonzero(brightness == brightness.max())
        assert set(columns * COLUMNS // width) == {token % COLUMNS}
        assert set(rows * ROWS // height) == {token // COLUMNS}
        assert len(rows) == width // COLUMNS * height // ROWS
        patches = overlay[..., 3].reshape(ROWS, height // ROWS, COLUMNS, width // COLUMNS).swapaxes(1, 2)
        patches = patches.reshape(ROWS * COLUMNS, -1)
        assert (patches == patches[:, :1]).all()
        # The more attention, the less is seen through; what gets none is clear.
        assert (patches[:, 0] == 0).tolist() == (WEIGHTS[layer] == 0).tolist()
        by_weight = patches[np.argsort(WEIGHTS[layer], kind="stable"), 0]
        assert (np.diff(by_weight) >= 0).all()


def test_there_is_an_overlay_for_every_layer_that_has_visual_tokens():
    made = fragment()
    names = [name for name in made.variables if re.fullmatch(r"(full|withdrawn)-\d+", name)]
    assert names == [f"full-{layer}" for layer in range(LAYERS)] + [f"withdrawn-{layer}" for layer in range(LAYER)]
    for layer in range(LAYER):
        assert np.array_equal(made.overlay("full", layer), made.overlay("withdrawn", layer))
    dimmed = [attributes for _, attributes, _ in made.elements if "gone" in attributes.get("class", "")]
    assert len(dimmed) == 2 * (LAYERS - LAYER)  # on the side, and on the sheet
    all_layers = fragment(withdrawn=attention_map(WEIGHTS, LAYERS))
    assert not [attributes for _, attributes, _ in all_layers.elements if "gone" in attributes.get("class", "")]


def test_a_layer_that_does_not_look_is_clear_but_not_withdrawn():
    weights = WEIGHTS.copy()
    weights[3] = 0
    made = fragment(full=attention_map(weights))
    assert not made.overlay("full", 3)[..., 3].any()
    assert made.captions()[0][3] == "layer 3: 0 % of the attention is on the picture"
    nothing = fragment(attention_map(0 * WEIGHTS), attention_map(0 * WEIGHTS, LAYER))
    assert not any(nothing.overlay("full", layer)[..., 3].any() for layer in range(LAYERS))


def test_a_layer_that_does_not_attend_is_clear_and_says_so():
    weights = WEIGHTS.copy()
    weights[[1, 3]] = np.nan
    full, withdrawn = (AttentionMap(weights.copy(), None, layer, weights.copy()) for layer in (None, LAYER))
    withdrawn.weights[2] = 0
    made = fragment(full, withdrawn)
    assert not made.overlay("full", 1)[..., 3].any()
    told = ["layer 0: 60 % of the attention is on the picture", "layer 1: it doesn't attend"]
    assert made.captions()[0] == [
        *told,
        "layer 2: 10 % of the attention is on the picture",
        "layer 3: it doesn't attend",
    ]
    assert made.captions()[1][:2] == told
    (opened,) = [attributes["value"] for tag, attributes, _ in made.elements if attributes.get("class") == "map-layer"]
    assert opened == "0"  # the last one before K that attends
    reading = attention_map_reading(both(full, withdrawn))
    assert "Layer 0 looks at the picture most" in reading
    assert "From layer 2 on the picture gets 10 % of all attention" in reading
    assert reading.endswith("2 of the 4 layers don't attend, and are left out.")
    rows = attention_map_table(GEOMETRY, both(full, withdrawn)).rows
    assert {row[0] for row in rows if row[7:11] == (None,) * 4} == {1, 3}
    assert attention_map_png(GEOMETRY, both(full, withdrawn), PICTURE)


def test_both_runs_have_the_same_scale_in_a_layer():
    made = fragment(withdrawn=attention_map(2 * WEIGHTS / 3, LAYER))
    full, withdrawn = (made.overlay(run, 0)[..., 3].max() for run in ("full", "withdrawn"))
    assert 0 < withdrawn < full
    brighter = fragment(withdrawn=attention_map(3 * WEIGHTS / 2, LAYER))
    assert brighter.overlay("full", 0)[..., 3].max() < brighter.overlay("withdrawn", 0)[..., 3].max() == full
    assert brighter.legend()[0] == ["60 %", "30 %", "10 %", "0.7 %"]


def test_layers_on_one_scale_are_as_bright_as_their_maximum():
    made = fragment()
    relative = [float(made.variables[f"relative-{layer}"]) for layer in range(LAYERS)]
    assert relative == pytest.approx([1, 0.5, 0.25, 0.0175], abs=1e-4)
    assert made.legend() == (["40 %", "20 %", "10 %", "0.7 %"], "40 %")


def test_sinks_are_outlined_in_the_layers_that_they_enter():
    paths = re.findall(r'data-at="(\d)"[^>]*>\s*<span class="map-picture"><b[^>]*></b><svg[^>]*><path d="([^"]*)"',
                       attention_map_html(GEOMETRY, RUNS, PICTURE))  # fmt: skip
    one = "M50.00 0.00H75.00V50.00H50.00Z"
    assert paths == [("1", one), ("2", one + "M75.00 50.00H100.00V100.00H75.00Z"), ("1", one)]


def test_the_switch_shades_by_attention_times_value_norm():
    made = Fragment(attention_map_html(GEOMETRY, RUNS, PICTURE, CONTRIBUTION))
    assert np.array_equal(made.overlay("full", 0), fragment().overlay("full", 0)[::-1, ::-1])
    assert made.captions()[0][0] == "layer 0: 60 % of the attention times value norm is on the picture"


def test_captions_give_the_pictures_share():
    full, withdrawn = fragment().captions()
    assert full == [
        f"layer {layer}: {share} of the attention is on the picture"
        for layer, share in enumerate(["60 %", "25 %", "10 %", "0.8 %"])
    ]
    assert withdrawn == [
        *full[:LAYER],
        "layer 2, withdrawn: no visual token from layer 2 on",
        "layer 3, withdrawn: no visual token from layer 2 on",
    ]


def test_only_one_layer_is_shown_and_everything_has_a_name():
    made = fragment()
    shown = [attributes for _, attributes, _ in made.elements if "data-at" in attributes and "hidden" not in attributes]
    assert [attributes["data-at"] for attributes in shown] == ["1"] * 5  # legend, two pictures, two captions
    for _, attributes, _ in made.elements:
        if attributes.get("role") == "img":
            assert f"layer {attributes['data-at']}" in attributes["aria-label"]
    live = [attributes for _, attributes, _ in made.elements if attributes.get("aria-live") == "polite"]
    assert [attributes["class"] for attributes in live] == ["map-caption"] * 2
    titles = [text for tag, _, text in made.elements if tag == "figcaption"]
    assert titles == ["Every layer sees the picture", "Visual tokens withdrawn at layer 2"]


def test_the_fragment_holds_no_script_and_needs_no_network():
    html = attention_map_html(GEOMETRY, RUNS, PICTURE)
    made = Fragment(html)
    assert "<script" not in html
    assert "//" not in re.sub(r"base64,[\w+/=]+", "", html)
    assert not [name for _, attributes, _ in made.elements for name in attributes if name.startswith("on")]
    assert html.count("data:image/jpeg") == 1
    assert made.image("picture").size == (336, 168)


def test_patches_are_crisp_where_none_overlap():
    assert "crisp" in fragment().classes
    # An overview and tiles, as LLaVA-NeXT has them: half of each tile's weight lies under its own four patches.
    overview = PatchGeometry((PICTURE.size,), grid(0, COLUMNS, ROWS) + grid(0, 2 * COLUMNS, 2 * ROWS))
    weights = np.zeros((1, 5 * COLUMNS * ROWS))
    weights[0, 0], weights[0, COLUMNS * ROWS] = 0.4, 0.1
    made = fragment_of_one_layer(overview, weights)
    assert "crisp" not in made.classes
    # On the area of a tile's patch lie its own 10 % and a quarter of the overview's 40 %.
    assert made.legend()[0] == ["20 %"]


def fragment_of_one_layer(geometry, weights):
    maps = attention_map(weights), attention_map(weights, 1)
    return Fragment(attention_map_html(geometry, both(*maps), PICTURE))


def test_a_picture_whose_tokens_have_no_place_is_shown_bare():
    geometry = PatchGeometry((PICTURE.size,), (VisualPatch(0, None),) * (COLUMNS * ROWS))
    made = fragment(geometry=geometry)
    assert made.legend() == (["0 %"] * LAYERS, "0 %")


def test_the_reading_says_how_much_the_brightest_patches_take():
    # One of 8 patches is the brightest tenth: 0.4 and 0.2 of 0.6 and 0.25 until K, then 0.1 and 0.008 of all.
    assert attention_map_reading(RUNS) == (
        "Layer 0 looks at the picture most. In layers 0 to 1 the brightest tenth of the patches takes 71 % of the "
        "attention that the picture gets. From layer 2 on the picture gets 5.4 % of all attention, and none when it is "
        "withdrawn. 2 patches are sinks, outlined: visual token 2, 7."
    )
    weighted = attention_map_reading(RUNS, CONTRIBUTION)
    assert "71 % of the attention, each weight times the norm of its value, that the picture gets" in weighted
    nowhere = Sinks(((), (5,), (), ()), ((),) * LAYERS, 22.0)
    said = attention_map_reading(both(dataclasses.replace(FULL, sinks=nowhere)))
    assert said.endswith("No patch is a sink: none has the first token's massive activations.")
    nothing = Sinks(((),) * LAYERS, ((),) * LAYERS, 14.2)
    said = attention_map_reading(both(dataclasses.replace(FULL, sinks=nothing)))
    assert said.endswith("has no massive activation, at most 14 times the root mean square of 20.")
    assert "In layer 0 the brightest tenth" in attention_map_reading(both(FULL, attention_map(WEIGHTS, 1)))
    assert attention_map_reading(both(FULL, attention_map(WEIGHTS, LAYERS))).endswith(
        "the picture gets. Nothing is withdrawn. 2 patches are sinks, outlined: visual token 2, 7."
    )


def test_the_table_has_a_row_for_each_layer_and_token():
    geometry = dataclasses.replace(GEOMETRY, patches=(*GEOMETRY.patches[:-1], VisualPatch(0, None)))
    table = attention_map_table(geometry, RUNS)
    assert table.columns == (
        "layer", "visual token", "picture", "left", "top", "right", "bottom", "full (%)", "withdrawn (%)",
        "full, × value norm (%)", "withdrawn, × value norm (%)", "sink",
    )  # fmt: skip
    assert len(table.rows) == LAYERS * COLUMNS * ROWS
    assert table.rows[6] == (
        0,
        6,
        0,
        0.5,
        0.5,
        0.75,
        1.0,
        pytest.approx(40),
        pytest.approx(40),
        pytest.approx(10),
        pytest.approx(10),
        False,
    )
    assert table.rows[2 * 8] == (2, 0, 0, 0.0, 0.0, 0.25, 0.5, pytest.approx(10), 0, 0, 0, False)
    assert table.rows[7] == (0, 7, 0, None, None, None, None, 0, 0, pytest.approx(10), pytest.approx(10), False)
    assert [row[1] for row in table.rows if row[0] == 2 and row[-1]] == [2, 7]


def test_the_png_has_a_column_for_each_layer():
    sheet = Image.open(io.BytesIO(attention_map_png(GEOMETRY, RUNS, PICTURE)))
    pixels = np.asarray(sheet.convert("RGB")).astype(int)
    assert sheet.format == "PNG"
    coloured = pixels.max(-1) - pixels.min(-1) > 20
    width = sheet.width // LAYERS
    for layer in range(LAYERS):
        of_layer = coloured[:, layer * width : (layer + 1) * width]
        above, below = of_layer[: sheet.height // 2 + 7], of_layer[sheet.height // 2 + 7 :]
        assert above.any()
        assert below.any() == (layer < LAYER)


@pytest.fixture
def page(browser):
    """Two fragments, which come onto the page after its script, and a clock that stands still until it is moved."""
    page, errors = browser.new_page(viewport={"width": 1000, "height": 800}), []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.clock.install()
    page.set_content(f"<style>{PLOTS_CSS}</style><main></main><script>{ATTENTION_MAP_SCRIPT}</script>")
    html = attention_map_html(GEOMETRY, RUNS, PICTURE)
    page.evaluate("html => document.querySelector('main').innerHTML = html + html", html)
    page.clock.pause_at(2**40)
    yield page
    page.close()
    assert not errors


def view(page, number=0):
    return page.locator(".attention-map").nth(number)


def shown(view):
    """The layer on the slider, if all that is shown is of that layer."""
    layer = view.locator("input[type=range]").input_value()
    captions = view.locator(".map-caption p:visible").all_inner_texts()
    pictures = [part.get_attribute("aria-label") for part in view.locator("[role=img]:visible").all()]
    assert len(captions) == len(pictures) == 2
    for text in captions:
        assert re.match(rf"layer {layer}\b", text)
    for text in pictures:
        assert f"layer {layer}." in text
    assert view.locator("output").inner_text() == layer
    assert view.locator("[aria-current=true]").get_attribute("aria-label") == f"Show layer {layer}"
    return int(layer)


def test_the_slider_chooses_the_layer(page):
    assert shown(view(page)) == 1
    view(page).get_by_label("decoder layer").fill("3")
    assert shown(view(page)) == 3
    assert view(page).locator("p:visible", has_text="withdrawn: no visual token from layer 2 on").count() == 1
    view(page).get_by_label("decoder layer").press("ArrowLeft")
    assert shown(view(page)) == 2
    assert shown(view(page, 1)) == 1


def test_a_click_on_the_sheet_chooses_the_layer(page):
    view(page).get_by_role("button", name="Show layer 3").click()
    assert shown(view(page)) == 3
    view(page).get_by_role("button", name="Show layer 0").press("Enter")
    assert shown(view(page)) == 0
    assert shown(view(page, 1)) == 1


def test_play_goes_through_the_layers_until_pause(page):
    page.clock.run_for(10_000)
    assert shown(view(page)) == 1  # nothing plays unasked
    view(page).get_by_role("button", name="Play").click()
    page.clock.run_for(1_000)
    assert shown(view(page)) == 2
    view(page).get_by_role("button", name="Pause").click()
    page.clock.run_for(10_000)
    assert shown(view(page)) == 2
    view(page).get_by_role("button", name="Play").click()
    page.clock.run_for(10_000)
    assert shown(view(page)) == LAYERS - 1
    assert shown(view(page, 1)) == 1
    # At the end it stops, and starts from the first layer again.
    view(page).get_by_role("button", name="Play").click()
    assert shown(view(page)) == 0


def test_the_slider_and_the_sheet_pause(page):
    for choose in (
        lambda: view(page).get_by_label("decoder layer").fill("0"),
        lambda: view(page).get_by_role("button", name="Show layer 0").click(),
    ):
        view(page).get_by_role("button", name="Play").click()
        choose()
        page.clock.run_for(10_000)
        assert shown(view(page)) == 0
        view(page).get_by_label("decoder layer").fill("1")


def test_a_fragment_that_is_taken_away_stops_playing(page):
    view(page).get_by_role("button", name="Play").click()
    taken = view(page).element_handle()
    taken.evaluate("element => element.remove()")
    page.clock.run_for(10_000)
    assert taken.evaluate("element => element.querySelector('input[type=range]').value") == "1"


def test_the_same_scale_dims_layers_that_hardly_look(page):
    overlay = view(page).locator("[role=img]:visible b").first
    legend = view(page).locator(".map-legend")

    def opacity():
        return float(overlay.evaluate("element => getComputedStyle(element).opacity"))

    assert opacity() == 1
    assert "20 % of the attention on a patch" in legend.inner_text()
    view(page).get_by_label("same scale in all layers").check()
    assert opacity() == pytest.approx(0.5)
    assert "40 % of the attention on a patch" in legend.inner_text()
    view(page).get_by_label("same scale in all layers").uncheck()
    assert opacity() == 1


def test_it_fits_a_phone(page):
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_another_method_beside_has_its_picture_its_sentence_and_its_columns():
    weights = np.where(np.arange(WEIGHTS.shape[1]) % 2, WEIGHTS, 0).astype(np.float32)
    beside = dataclasses.replace(attention_map(weights), recipe="0:uniform_grid:0.5")
    runs = {**RUNS, "beside": beside}
    html = attention_map_html(GEOMETRY, runs, PICTURE)
    assert html.count('<figure class="map-side') == 3
    assert "Beside it: uniform grid, 50 % of the visual tokens left from layer 0 on" in html
    assert html.count("var(--beside-0)") == 2, "large, and on the sheet"
    mean = 100 * weights.sum() / LAYERS
    said = "Beside it, uniform grid, 50 % of the visual tokens left from layer 0 on: over all layers the picture gets "
    assert f"{said}{percent(mean / 100)}" in attention_map_reading(runs)
    table = attention_map_table(GEOMETRY, runs)
    assert "beside (%)" in table.columns
    assert {row[table.columns.index("beside (%)")] for row in table.rows if row[1] % 2 == 0} == {0.0}
    tall, low = (Image.open(io.BytesIO(attention_map_png(GEOMETRY, of, PICTURE))) for of in (runs, RUNS))
    assert tall.height > low.height
