import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from vtw_demo.page.examples import load_examples

RUN_FIELDS = {
    "answer", "tokens", "encode_ms", "prefill_ms", "decode_ms_per_token", "total_ms", "prefill_flops", "kv_cache_bytes",
}  # fmt: skip


@pytest.fixture(scope="module")
def client(server):
    return Client(server, verbose=False)


@pytest.fixture(scope="module")
def picture():
    return handle_file(load_examples()[0].picture)


def test_compare_gives_both_runs_and_what_they_were(client, picture):
    result = client.predict(picture, "Describe the picture.", 6, 8, api_name="/compare")
    assert result["full"].keys() >= RUN_FIELDS
    assert result["withdrawn"].keys() >= RUN_FIELDS
    assert (result["layer"], result["layers"], result["visual_tokens"]) == (6, 12, 196)
    assert result["text_tokens"] > 3
    assert 1 <= len(result["full"]["tokens"]) <= 8
    assert result["withdrawn"]["prefill_flops"] < result["full"]["prefill_flops"]
    assert result["withdrawn"]["kv_cache_bytes"] < result["full"]["kv_cache_bytes"]
    again = client.predict(picture, "Describe the picture.", 6, 8, api_name="/compare")
    assert again["full"]["tokens"] == result["full"]["tokens"]
    assert again["withdrawn"]["tokens"] == result["withdrawn"]["tokens"]


@pytest.mark.parametrize(
    ("question", "layer", "cap", "expected"),
    [
        ("", 6, 8, "question is empty"),
        ("What is it?", 0, 8, "leave the picture out"),
        ("What is it?", 13, 8, "12"),
        ("What is it?", 6, 0, "number of new tokens"),
        ("word " * 3000, 6, 8, "too long"),
    ],
)
def test_a_bad_request_gets_one_sentence(client, picture, question, layer, cap, expected):
    with pytest.raises(AppError, match=expected) as failure:
        client.predict(picture, question, layer, cap, api_name="/compare")
    assert "Traceback" not in str(failure.value)
    assert "\n" not in str(failure.value)


def test_a_file_that_is_no_picture_gets_one_sentence(client, tmp_path):
    file = tmp_path / "notes.png"
    file.write_text("not a picture")
    with pytest.raises(AppError, match="not a picture that can be read"):
        client.predict(handle_file(file), "What is it?", 6, 8, api_name="/compare")


def test_every_public_callback_has_a_name(client):
    named = client.view_api(return_format="dict")["named_endpoints"]
    assert {"/compare", "/random_scene"} <= named.keys()
    assert not client.view_api(return_format="dict")["unnamed_endpoints"]


def test_examine_gives_the_numbers_of_every_plot(client, picture):
    result = client.predict(picture, "What is the blue thing?", 6, 8, api_name="/examine")
    assert {"comparison", "attention", "attention_maps", "migration", "staircase", "sweep", "probabilities"} <= set(
        result
    )
    assert len(result["migration"]["probability"]) == len(result["staircase"]["full"]) == 12
    assert result["comparison"]["full"]["tokens"]
