import json

import pytest
import torch

from vtw_demo.comparison.compare import compare
from vtw_demo.measurements.query_sweep import sweep_query
from vtw_demo.withdrawal.withdraw import withdraw

QUESTION = "What do you see?"


def test_everything_is_what_single_runs_give(vlm, picture):
    *_, comparison = compare(vlm, picture, QUESTION, 5, max_new_tokens=6)
    swept = sweep_query(vlm, vlm.prompt(picture, QUESTION), comparison.full.tokens)
    assert swept.layers == tuple(range(1, 13))
    assert "".join(swept.answer).replace("(end)", "").strip() == comparison.full.answer
    inputs = vlm.prepare(picture, QUESTION)
    with torch.no_grad():
        full = vlm.model(**inputs).logits[0, -1].softmax(-1)
    assert [token.probability for token in swept.full_tokens] == pytest.approx(full.topk(5).values.tolist(), abs=1e-4)
    for layer in (1, 5, 11):
        with torch.no_grad(), withdraw(vlm.model, layer):
            withdrawn = vlm.model(**inputs).logits[0, -1].softmax(-1)
        tokens = swept.withdrawn_tokens[layer - 1]
        assert [token.probability for token in tokens] == pytest.approx(withdrawn.topk(5).values.tolist(), abs=1e-4)
        assert tokens[0].text == vlm.token_text(int(withdrawn.argmax()))
        divergence = (withdrawn * (withdrawn / full).log()).sum().item()
        assert swept.kl[layer - 1] == swept.answer_kl[layer - 1][0] == pytest.approx(divergence, abs=1e-4)
    withdrawn = comparison.withdrawn
    assert swept.flops_left[4] == pytest.approx(withdrawn.prefill_flops / comparison.full.prefill_flops)
    json.dumps(swept.to_json())


def test_what_the_model_would_have_said_is_what_it_says_while_the_answers_agree(vlm, picture):
    for layer in (2, 6, 10):
        *_, comparison = compare(vlm, picture, QUESTION, layer, max_new_tokens=12)
        swept = sweep_query(vlm, vlm.prompt(picture, QUESTION), comparison.full.tokens)
        said = [vlm.token_text(token) for token in comparison.withdrawn.tokens]
        until = comparison.first_difference
        count = len(said) if until is None else until
        assert list(swept.answer_choices[layer - 1])[:count] == said[:count]
