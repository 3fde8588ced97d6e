import base64
import re
import time
from pathlib import Path

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
    assert "In one run, prefill" in result["verdict"]
    assert (result["layer"], result["layers"], result["visual_tokens"]) == (6, 13, 196)
    assert (result["detail"], result["encoded_once"]) == ("usual", False)
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
        ("What is it?", 14, 8, "13"),
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
    assert len(result["migration"]["probability"]) == len(result["staircase"]["full"]) == 13
    assert result["comparison"]["full"]["tokens"]


def uri(content, head="data:image/png;base64,"):
    return head + base64.b64encode(content).decode()


PICTURE = load_examples()[0].picture.read_bytes()
WAY = "data URI.*handle_file.*/gradio_api/upload"


@pytest.mark.parametrize(
    "given",
    [
        uri(PICTURE),
        uri(PICTURE, "data:;base64,"),
        uri(PICTURE, "DATA:image/jpeg;BASE64,"),
        "data:image/png;base64,\n" + base64.encodebytes(PICTURE).decode(),
        {"url": uri(PICTURE)},
        {"path": None, "url": uri(PICTURE), "meta": {"_type": "gradio.FileData"}},
    ],
    ids=["bare", "of no type", "in capitals", "in lines", "as url", "as url of a file"],
)
def test_a_data_uri_is_answered(given, client, picture, call):
    result, said = call(given, "Describe the picture.", 6, 8)
    assert said is None
    expected = client.predict(picture, "Describe the picture.", 6, 8, api_name="/compare")
    assert result["full"]["tokens"] == expected["full"]["tokens"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (base64.b64encode(PICTURE).decode(), WAY),
        ("iVBORw0KGgo=", WAY),
        ("/home/me/cat.png", WAY),
        (r"C:\cat.png", WAY),
        ("file:///etc/passwd", WAY),
        ("http://127.0.0.1:9/cat.png", WAY),
        ({"url": "http://127.0.0.1:9/cat.png"}, WAY),
        ({"path": "/etc/passwd", "url": uri(PICTURE)}, WAY),
        ({"path": uri(PICTURE)}, WAY),
        ({"path": "http://127.0.0.1:9/cat.png", "meta": {"_type": "gradio.FileData"}}, WAY),
        ([uri(PICTURE)], WAY),
        ({"data": "iVBORw0KGgo="}, WAY),
        ("data:image/svg+xml,<svg/>", WAY),
        (None, WAY),
        (7, WAY),
        ("data:image/png;base64,iVBORw0KGgo=", "damaged or cut short"),
        ({"url": "data:image/png;base64,&&&"}, "base64 is broken"),
        ("data:image/png;base64,", "file is empty"),
        (uri(b"x" * 20_000_001), "up to 20 MB"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_picture_handed_in_another_way_gets_a_sentence_that_names_it(given, expected, http, call):
    result, said = call(given, "What is it?", 6, 2)
    assert result is None
    assert re.search(expected, said), said
    answer = http.post("/gradio_api/run/compare", json={"data": [given, "What is it?", 6, 2]})
    assert re.search(expected, answer.json()["error"]), answer.text


def test_a_client_that_forgets_handle_file_is_told(client):
    for given in (str(load_examples()[0].picture), "cat.png"):
        with pytest.raises(AppError, match=WAY):
            client.predict(given, "What is it?", 6, 2, api_name="/compare")
    with pytest.raises(AppError, match=WAY):
        client.predict(handle_file("http://127.0.0.1:9/cat.png"), "What is it?", 6, 2, api_name="/examine")


def test_a_file_that_came_as_data_goes_with_its_session(server, upload):
    folder = Path(upload(b"x")["path"]).parents[1]
    own = Client(server, verbose=False)
    before = set(folder.rglob("picture"))
    content = PICTURE + b"of its own"
    own.predict(uri(content), "What is it?", 6, 2, api_name="/compare")
    (stored,) = set(folder.rglob("picture")) - before
    own.close()
    deadline = time.monotonic() + 15
    while stored.exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not stored.exists()
