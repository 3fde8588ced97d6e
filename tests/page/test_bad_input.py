"""Whatever is sent, through the API, MCP or the page: one sentence, or an answer; and the next request works."""

import ast
import base64
import re

import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from playwright.sync_api import expect

from tests import bad_input
from tests.bad_input import LAYERS, NEW_TOKENS, PICTURES, QUESTIONS, encoded, scene

GOOD = encoded(scene())
QUESTION = "What is it?"
# Generous: the machine may be doing other things. Nothing here asserts a time.
WAIT = 60_000


@pytest.fixture
def still_works(call, good):
    yield
    result, said = call(good, QUESTION, 6, 1)
    assert said is None
    assert result["full"]["tokens"]


def is_sentence(said):
    return bool(said) and "\n" not in said and "Traceback" not in said and len(said) < 300


def check(outcome, expected):
    result, said = outcome
    if expected is None:
        assert said is None
        assert result["full"]["tokens"]
        assert result["withdrawn"]["tokens"]
    else:
        assert result is None
        assert re.search(expected, said), said
        assert is_sentence(said), said
    return result


@pytest.mark.parametrize("case", PICTURES, ids=lambda case: case.name)
@pytest.mark.usefixtures("still_works")
def test_pictures(case, call, upload):
    result = check(call(upload(case.content(), case.file), QUESTION, 6, 2), case.said)
    if result is not None:
        assert case.note in result["note"]
        assert bool(case.note) == bool(result["note"])


@pytest.mark.parametrize("case", QUESTIONS, ids=lambda case: case.name)
@pytest.mark.usefixtures("still_works")
def test_questions(case, call, good):
    result = check(call(good, case.value, 6, 2), case.said)
    if result is not None:
        assert result["visual_tokens"] == 196


@pytest.mark.parametrize("case", LAYERS, ids=lambda case: case.name)
def test_layers(case, call, good):
    check(call(good, QUESTION, case.value, 2), case.said)


@pytest.mark.parametrize("case", NEW_TOKENS, ids=lambda case: case.name)
def test_numbers_of_new_tokens(case, call, good):
    check(call(good, QUESTION, 6, case.value), case.said)


@pytest.mark.parametrize("name", ["compare", "examine"])
@pytest.mark.usefixtures("still_works")
def test_calls_with_missing_extra_and_mistyped_values(name, call, good):
    expected = rf"{name} takes 6 values \(image, question, layer, max_new_tokens, picture_detail, beside\); "
    for data in ([], [good], [good, QUESTION, 6], [good, QUESTION, 6, 2, "usual", "", "more"]):
        check(call(*data, name=name), f"{expected}{len(data)} came")
    for picture in (None, 5, True, "", "picture.png", [good], {}, {"path": None}, {"path": 7}, {"url": "x"}):
        check(
            call(picture, QUESTION, 6, 2, name=name), "There is no picture.*data URI.*handle_file.*/gradio_api/upload"
        )
    check(call(good, {"text": QUESTION}, 6, 2, name=name), "must be text")
    for detail in ("more", 7, ["low"]):
        check(call(good, QUESTION, 6, 2, detail, name=name), "Unknown picture detail .*: choose low, usual or high")
    for beside, said in (
        ("more", "one of fastv, .* can run"),
        (7, "a name, .*this is 7"),
        ("2:more", "no step of a recipe"),
    ):
        check(call(good, QUESTION, 6, 2, "usual", beside, name=name), said)
    check(call("x", name="random_scene"), r"random_scene takes 0 values \(none\); 1 came")


@pytest.mark.usefixtures("still_works")
def test_bodies_that_mean_nothing(http, good):
    whole = [good, QUESTION, 6, 2]
    for route in ("call/compare", "run/compare", "api/compare", "queue/join", "call/v2/compare", "call/nothing"):
        for body in ({}, [], None, 5, "compare", {"data": "x"}, {"data": {}}, {"data": whole, "session_hash": []}):
            answer = http.post(f"/gradio_api/{route}", json=body)
            assert answer.status_code in (400, 404, 422), (route, body, answer.text)
            assert is_sentence(answer.json()["detail"]), (route, body, answer.text)
    for content in (b"", b"{", b"\xff\xfe", b"[" * 50_000, b'{"data": [' + b"9" * 6000 + b"]}"):
        answer = http.post("/gradio_api/call/compare", content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code == 400
        assert is_sentence(answer.json()["detail"])
    assert http.post(
        "/gradio_api/queue/join", json={"data": [], "fn_index": 10**6, "session_hash": "x"}
    ).is_client_error
    for fields in ({}, {"image": good}, {"image": good, "question": QUESTION, "layer": 6, "max_new_tokens": 2, "x": 1}):
        answer = http.post("/gradio_api/call/v2/compare", json=fields)
        assert answer.status_code == 400
        assert is_sentence(answer.json()["detail"])


@pytest.mark.usefixtures("still_works")
def test_200_mb_are_refused_however_they_come(http, upload, server):
    megabyte = bytes(1_000_000)

    def pieces(before, after):
        yield before
        for _ in range(200):
            yield megabyte
        yield after

    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="big.png"\r\nContent-Type: image/png\r\n\r\n'
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    length = {"Content-Length": str(len(head) + 200_000_000 + 9)}
    for headers in (form, form | length):
        answer = http.post("/gradio_api/upload", content=pieces(head, b"\r\n--x--\r\n"), headers=headers)
        assert answer.status_code == 413
        assert re.search("too large|exceeded maximum allowed size", answer.text)
        assert is_sentence(answer.text)
    text = {"Content-Type": "application/json"}
    answer = http.post("/gradio_api/call/compare", content=pieces(b'{"data": ["', b'"]}'), headers=text)
    assert answer.status_code == 413
    assert "up to 20 MB" in answer.json()["detail"]


def test_gradio_client_gets_the_same_sentences(server, tmp_path):
    client = Client(server, verbose=False)
    path = tmp_path / "picture.png"
    for case in (PICTURES[0], PICTURES[8]):
        path.write_bytes(case.content())
        with pytest.raises(AppError, match=case.said):
            client.predict(handle_file(path), QUESTION, 6, 2, api_name="/compare")
    path.write_bytes(GOOD)
    for values in (("", 6, 2), (QUESTION, "abc", 2), (QUESTION, 14, 2), (QUESTION, 6, 0)):
        with pytest.raises(AppError) as failure:
            client.predict(handle_file(path), *values, api_name="/compare")
        assert is_sentence(str(failure.value))
    assert client.predict(handle_file(path), QUESTION, 6, 2, api_name="/compare")["note"] == ""


def data_uri(content):
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def test_mcp_gets_sentences_too(ask, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    good = {"image": data_uri(GOOD), "question": QUESTION, "layer": 6, "max_new_tokens": 2}
    truncated, animated = PICTURES[0].content(), bad_input.animated("GIF")()
    for change, expected in (
        ({"image": data_uri(truncated)}, "damaged or cut short"),
        ({"image": "data:image/png;base64,&&&"}, "base64 is broken"),
        ({"image": "data:text/plain,hello"}, "hand a data URI"),
        ({"image": "picture.png"}, "hand a data URI"),
        ({"image": base64.b64encode(GOOD).decode()}, "hand a data URI"),
        ({"image": data_uri(b"")}, "file is empty"),
        ({"question": "\0"}, "question is empty"),
        ({"layer": 14}, "from 1 to 13"),
        ({"layer": "abc"}, "abc"),
        ({"layer": 3.5}, "3.5"),
        ({"max_new_tokens": 0}, "from 1 to 1024"),
        ({"more": 1}, "more"),
    ):
        result = ask("compare", **good | change)
        assert result.isError, change
        said = result.content[0].text
        assert expected in said, said
        assert "Traceback" not in said
    for missing in good:
        result = ask("compare", **{name: value for name, value in good.items() if name != missing})
        assert result.isError
        assert missing in result.content[0].text
    result = ask("compare", **good | {"image": data_uri(animated)})
    assert not result.isError
    assert "first frame" in ast.literal_eval(result.content[0].text)["note"]


NO_PICTURE = re.compile("damaged or cut short|too large")


def choose(page, content):
    remove = page.get_by_label("Remove").or_(page.get_by_label("Clear"))
    if remove.count():
        remove.first.click()
    if content is not None:
        file = {"name": "picture.png", "mimeType": "image/png", "buffer": content}
        with page.expect_response(re.compile("/upload")):
            page.locator("#picture input[type=file]").first.set_input_files(file)
        expect(remove.or_(page.locator("#picture", has_text=NO_PICTURE)).first).to_be_visible(timeout=WAIT)


def test_the_page_says_it_in_a_sentence_and_goes_on(page):
    expect(page.locator("#attention .js-plotly-plot")).to_be_visible(timeout=WAIT)
    contents = {case.name: case.content() for case in PICTURES} | {"none": None}
    for name, said in (("truncated PNG", "damaged or cut short"), ("decompression bomb", "too large")):
        choose(page, contents[name])
        expect(page.locator("#picture")).to_contain_text(said, timeout=WAIT)
    for name, said in (
        ("animated PNG", "answers are about its first frame"),
        ("none", "There is no picture"),
        ("CMYK", "FLOPs"),
    ):
        choose(page, contents[name])
        page.get_by_role("button", name="Run", exact=True).click()
        expect(page.locator("#verdict")).to_contain_text(said, timeout=WAIT)
        assert page.locator("#verdict p").count() == 1
    page.get_by_label("Question").fill("\u200b \u202e")
    page.get_by_role("button", name="Run", exact=True).click()
    expect(page.locator("#verdict")).to_contain_text("question is empty", timeout=WAIT)
    assert "Traceback" not in page.content()


# As its browser tells a file by its name: a name that it doesn't know has no type.
OF_ANY_FORMAT = {
    "IMG_0001.HEIC": bad_input.high_efficiency,
    "small.heif": bad_input.high_efficiency,
    "scan.TIF": lambda: encoded(scene(), "TIFF"),
    "picture.avif": lambda: encoded(scene(), "AVIF"),
    "jpeg.heic": lambda: encoded(scene(), "JPEG"),
}
DROP = """([bytes, name]) => {
    const dropped = new DataTransfer();
    dropped.items.add(new File([new Uint8Array(bytes)], name));
    const target = document.querySelector("#picture .upload-container, #picture button");
    target.dispatchEvent(new DragEvent("drop", { bubbles: true, cancelable: true, dataTransfer: dropped }));
}"""


@pytest.mark.parametrize("name", [*OF_ANY_FORMAT, "dropped.HEIC"])
def test_the_page_shows_a_picture_of_any_format(name, page, tmp_path):
    expect(page.locator("#attention .js-plotly-plot")).to_be_visible(timeout=WAIT)
    page.get_by_label("Remove").or_(page.get_by_label("Clear")).first.click()
    file = tmp_path / name
    file.write_bytes(OF_ANY_FORMAT.get(name, bad_input.high_efficiency)())
    if name in OF_ANY_FORMAT:
        page.locator("#picture input[type=file]").first.set_input_files(file)
    else:
        page.locator("#picture input[type=file]").first.wait_for(state="attached")
        page.evaluate(DROP, [list(file.read_bytes()), name])
    page.wait_for_function("document.querySelector('#picture img')?.naturalWidth == 96", timeout=WAIT)
    page.get_by_role("button", name="Run", exact=True).click()
    expect(page.locator("#verdict")).to_contain_text("FLOPs", timeout=WAIT)
