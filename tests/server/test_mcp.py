"""The page as an MCP server, asked by a real client."""

import ast
import base64

import pytest

from vtw_demo.page.examples import load_examples


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture(scope="module")
def image():
    content = load_examples()[0].picture.read_bytes()
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def test_tools_say_what_they_take(ask):
    tools = {tool.name: tool for tool in ask().tools}
    assert tools.keys() == {"compare", "examine", "random_scene"}
    fields = tools["compare"].inputSchema["properties"]
    assert fields.keys() == {"image", "question", "layer", "max_new_tokens", "picture_detail", "beside"}
    assert "Withdrawal layer K" in fields["layer"]["description"]


def test_a_comparison(ask, image):
    result = ask("compare", image=image, question="What is the blue thing?", layer=6, max_new_tokens=8)
    assert not result.isError
    answered = ast.literal_eval(result.content[0].text)
    assert answered["layer"] == 6
    assert answered["full"]["answer"]
    assert answered["withdrawn"]["prefill_flops"] < answered["full"]["prefill_flops"]


def test_errors_are_sentences(ask, image):
    result = ask("compare", image=image, question="What is it?", layer=14, max_new_tokens=8)
    assert result.isError
    assert "from 1 to 13" in result.content[0].text
    assert "Traceback" not in result.content[0].text
