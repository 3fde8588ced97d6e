from dataclasses import replace

import pytest

from tests.tiny_models import build
from vtw_demo.measurements.attention import AttentionMass
from vtw_demo.plots.attention import attention_figure, attention_reading, attention_table, where_it_looks
from vtw_demo.plots.overlay import Overlaid, overlay_figure, overlay_reading
from vtw_demo.plots.published_attention import LLAVA, published_lines
from vtw_demo.plots.tab import ANSWER_MEAN, CONTRIBUTION, COSINE, LAST_PROMPT
from vtw_demo.withdrawal.segments import Segment

SEGMENTS = tuple(str(segment.value) for segment in Segment)
IMAGE = SEGMENTS.index(Segment.IMAGE.value)
LAYERS, LAYER = 4, 2


def mass(image_by_layer, withdrawal_layer=None, answer=True):
    def shares(image):
        rest = (1 - image) / (len(SEGMENTS) - 1)
        return tuple(image if index == IMAGE else rest for index in range(len(SEGMENTS)))

    rows = tuple(shares(image) for image in image_by_layer)
    halves = tuple(shares(image / 2) for image in image_by_layer)
    cosines = tuple(1 - image for image in image_by_layer)
    queries = (rows, rows, halves) if answer else (rows,)
    carried = {"contribution": queries[::-1], "cosine": (cosines,) * len(queries)}
    return AttentionMass(SEGMENTS, rows, queries[1:], 196, withdrawal_layer, **carried)


FULL = mass((0.5, 0.3, 0.2, 0.1))
WITHDRAWN = mass((0.5, 0.3, 0.0, 0.0), LAYER)
RUNS = {"full": FULL, "withdrawn": WITHDRAWN}


def bars(figure, name):
    return [[round(float(value), 6) for value in trace.y] for trace in figure.data if trace.name == name]


def test_each_layer_is_a_bar_of_all_its_attention():
    figure = attention_figure(RUNS, LAST_PROMPT)
    assert len(figure.data) == 2 * len(SEGMENTS)
    assert bars(figure, Segment.IMAGE.value) == [[50, 30, 20, 10], [50, 30, 0, 0]]
    for column in range(2):
        traces = figure.data[column * len(SEGMENTS) : (column + 1) * len(SEGMENTS)]
        for layer in range(LAYERS):
            assert sum(trace.y[layer] for trace in traces) == pytest.approx(100)


def test_the_withdrawal_layer_is_marked_in_both():
    figure = attention_figure(RUNS, LAST_PROMPT)
    assert [(shape.x0, shape.x1) for shape in figure.layout.shapes] == [(LAYER - 0.5, LAYER - 0.5)] * 2
    unmarked = attention_figure({"full": FULL, "withdrawn": mass((0.5, 0.3, 0.2, 0.1), LAYERS)}, LAST_PROMPT)
    assert not unmarked.layout.shapes


def test_the_answers_mean_is_over_its_tokens():
    figure = attention_figure(RUNS, ANSWER_MEAN)
    assert bars(figure, Segment.IMAGE.value)[0] == [37.5, 22.5, 15, 7.5]


def test_axes_say_what_they_show():
    attention = attention_figure(RUNS, LAST_PROMPT)
    assert "layer" in attention.layout.xaxis.title.text
    assert "attention" in attention.layout.yaxis.title.text
    for quantity in (CONTRIBUTION, COSINE):
        assert attention_figure(RUNS, LAST_PROMPT, quantity).layout.yaxis.title.text == quantity


def test_the_reading_gives_the_pictures_share_before_and_after_and_the_first_tokens():
    sentence = attention_reading(RUNS, LAST_PROMPT)
    assert "40 % of the attention of the last prompt token in layers 0 to 1 and 15 % in layers 2 to 3" in sentence
    assert "Withdrawn at layer 2" in sentence
    assert "the first token gets 25 % there instead of 21 %" in sentence


def test_layers_that_do_not_attend_leave_gaps_and_the_reading_says_why():
    def with_gaps(whole):
        def rows(shares):
            return (None, shares[1], None, shares[3])

        answer, contribution, cosine = (tuple(map(rows, of)) for of in (whole.answer, whole.contribution, whole.cosine))
        last_prompt, layer = rows(whole.last_prompt), whole.withdrawal_layer
        return AttentionMass(SEGMENTS, last_prompt, answer, 196, layer, contribution, cosine)

    full, withdrawn = with_gaps(FULL), with_gaps(WITHDRAWN)
    runs = {"full": full, "withdrawn": withdrawn}
    for query in (LAST_PROMPT, ANSWER_MEAN, 1):
        figure = attention_figure(runs, query)
        for trace in figure.data:
            assert [value is None for value in trace.y] == [True, False, True, False]
        table = attention_table(runs, query)
        assert [row[:2] for row in table.rows if row[2] is None] == [
            (run, layer) for run in ("full", "withdrawn") for layer in (0, 2)
        ]
        sentence = attention_reading(runs, query)
        assert sentence.endswith("2 of the 4 layers don't attend, and are left out.")
    assert "30 % of the attention of the last prompt token in layers 0 to 1" in attention_reading(runs, LAST_PROMPT)
    overlaid = Overlaid("one", LAYER, full, withdrawn, (0.5, 0.1, 0.0))
    shares = [trace.y for trace in overlay_figure(overlaid, overlaid).data if trace.name == "one, full"]
    assert [[None if share is None else round(share) for share in row] for row in shares] == [[None, 30, None, 10]] * 2
    assert overlay_reading(overlaid, overlaid).endswith("don't attend, and are left out.")


def test_where_a_model_looks_is_said_by_its_layers():
    first, image = (0.0, 0.5, 0.9, 0.4, 0.6, 0.1), (0.41, 0.12, 0.0, 0.25, 0.3, 0.05)
    shares = [(one, 0.0, picture, 1 - one - picture, 0.0) for one, picture in zip(first, image, strict=True)]
    assert where_it_looks(shares) == (
        "Of the attention of the last prompt token, 20 % or more are on the picture in layers 0, 3, 4, at most 12 % in "
        "the others; and 20 % or more on the first token in layers 1, 2, 3, 4."
    )
    assert "on the picture in no layer" in where_it_looks([(0.1, 0.0, 0.1, 0.8, 0.0)])
    assert "on the first token in layer 0." in where_it_looks([(0.3, 0.0, 0.1, 0.6, 0.0)])


def test_the_switch_shows_contributions_and_the_cosine():
    weighted = attention_figure(RUNS, LAST_PROMPT, CONTRIBUTION)
    assert bars(weighted, Segment.IMAGE.value)[0] == [25, 15, 10, 5]
    said = attention_reading(RUNS, LAST_PROMPT, CONTRIBUTION)
    assert "20 % of the attention, each weight times the norm of its value, of the last prompt token" in said
    cosine = attention_figure(RUNS, ANSWER_MEAN, COSINE)
    assert [list(trace.y) for trace in cosine.data] == [[0.5, 0.7, 0.8, 0.9], [0.5, 0.7, 1, 1]]
    said = attention_reading(RUNS, ANSWER_MEAN, COSINE)
    assert "0.500 in layer 0, the lowest" in said
    assert "From layer 2 on the lowest is 0.800; withdrawn, 1." in said
    table = attention_table(RUNS, LAST_PROMPT)
    assert table.columns[-2:] == ("answer, × value norm (%)", "cosine without picture")
    assert table.rows[0][4] == pytest.approx(50)
    assert table.rows[0][9] == pytest.approx(25)
    assert table.rows[0][-1] == 0.5


def test_published_lines_are_those_of_llava_1_5_alone(vlm):
    assert vlm.model.config.model_type == "llava"
    for name in ("llava-hf/llava-1.5-7b-hf", "/models/LLaVA-1.5-13b-hf"):
        assert published_lines(replace(vlm, name=name)) == LLAVA
    for name in ("embedded", "llava-hf/llava-v1.6-vicuna-7b-hf", "mistral-community/pixtral-12b"):
        assert published_lines(replace(vlm, name=name)) == ()
    other = replace(vlm, name="llava-1.5-like", model=build("qwen2_vl").model)
    assert published_lines(other) == ()


def test_published_lines_stand_beside_attention_with_their_source():
    figure = attention_figure(RUNS, LAST_PROMPT, published=LLAVA)
    image, text = figure.data[-2:]
    assert list(image.x) == [0, 4, 18, 3]
    assert list(image.y) == pytest.approx([68, 7, 4, 4])
    assert "arXiv 2606.09131" in image.text
    assert "FastV" in text.text
    said = attention_reading(RUNS, LAST_PROMPT, published=LLAVA)
    assert "published shares of LLaVA-1.5: from text to the image in arXiv 2606.09131, and" in said
    assert said.endswith("in section 3.3 of FastV, arXiv 2403.06764.")
    assert "published" not in attention_reading(RUNS, LAST_PROMPT)
    for quantity in (CONTRIBUTION, COSINE):
        drawn = attention_figure(RUNS, LAST_PROMPT, quantity)
        assert len(attention_figure(RUNS, LAST_PROMPT, quantity, LLAVA).data) == len(drawn.data)
        assert "published" not in attention_reading(RUNS, LAST_PROMPT, quantity, LLAVA)


def test_another_method_beside_has_its_column_its_sentence_and_its_rows():
    beside = replace(mass((0.5, 0.2, 0.1, 0.0)), recipe="2:fastv:0.3")
    runs = {**RUNS, "beside": beside}
    figure = attention_figure(runs, LAST_PROMPT)
    assert [note.text for note in figure.layout.annotations[:3]] == ["full", "withdrawn at layer 2", "FastV"]
    assert bars(figure, Segment.IMAGE.value)[2] == [50, 20, 10, 0]
    assert len(figure.layout.shapes) == 2, "K is withdrawal's"
    words = "Beside it, FastV, 30 % of the visual tokens left from layer 2 on: "
    said = attention_reading(runs, LAST_PROMPT)
    assert words + "the picture gets 20 % over all layers, in the full run 28 %." in said
    assert words + "0.500 in layer 0, the lowest." in attention_reading(runs, LAST_PROMPT, COSINE)
    assert [row[0] for row in attention_table(runs, LAST_PROMPT).rows[-LAYERS:]] == ["beside"] * LAYERS
