import random

import pytest

from vtw_demo.comparison.data_rows import DataSample
from vtw_demo.embedded.scenes import draw, random_scene
from vtw_demo.evaluation.attention import attention_markdown, mean_attention
from vtw_demo.measurements.attention import measure_attention


def test_it_is_the_mean_of_what_is_measured_of_each_question(vlm):
    pictures = [draw(random_scene(random.Random(seed), 2)) for seed in range(2)]
    questions = ("How many objects are there?", "Describe the picture.")
    samples = [
        DataSample(question, "", question, ("",), lambda picture=picture: picture)
        for picture, question in zip(pictures, questions, strict=True)
    ]
    shares = mean_attention(vlm, samples)
    alone = [
        measure_attention(vlm.model, vlm.prepare(picture, question)).last_prompt
        for picture, question in zip(pictures, questions, strict=True)
    ]
    for layer, of_layer in enumerate(shares):
        expected = [sum(both) / 2 for both in zip(*(of[layer] for of in alone), strict=True)]
        assert of_layer == pytest.approx(expected)


def test_its_table_has_a_row_a_layer():
    head, _, first, second = attention_markdown([(0.5, 0.0, 0.25, 0.25, 0.0), (1.0, 0.0, 0.0, 0.0, 0.0)]).splitlines()
    assert head == "| layer | first token | system text | image | question |"
    assert (first, second) == ("| 0 | 50 % | 0 % | 25 % | 25 % |", "| 1 | 100 % | 0 % | 0 % | 0 % |")
