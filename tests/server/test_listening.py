"""Where the page listens, asked in the way that a browser or a container asks."""

import logging
import os
import re
import socket

import gradio as gr
import httpx
import pytest

from vtw_demo.errors import UserError
from vtw_demo.server.guarded_blocks import GuardedBlocks
from vtw_demo.server.listening import check_variables, listening
from vtw_demo.server.monitoring import Monitoring

HAS_IPV6 = socket.has_dualstack_ipv6()
needs_ipv6 = pytest.mark.skipif(not HAS_IPV6, reason="this machine has no IPv6")


@pytest.fixture(autouse=True)
def _variables(monkeypatch):
    for name in [name for name in os.environ if name.startswith("GRADIO_")]:
        monkeypatch.delenv(name)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "")


def answers(address, port):
    try:
        socket.create_connection((address, port), timeout=2).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize(
    ("host", "shown", "reached", "unreached"),
    [
        ("127.0.0.1", "127.0.0.1", ["127.0.0.1"], ["::1", "127.0.0.2"]),
        ("0.0.0.0", "localhost", ["127.0.0.1", "127.0.0.2"], ["::1"]),
        ("localhost", "localhost", ["localhost"], ["127.0.0.2"]),
        (" 127.0.0.2 ", "127.0.0.2", ["127.0.0.2"], ["127.0.0.1"]),
        pytest.param("::1", "[::1]", ["::1"], ["127.0.0.1"], marks=needs_ipv6),
        pytest.param("[::1]", "[::1]", ["::1"], ["127.0.0.1"], marks=needs_ipv6),
        pytest.param("0:0:0:0:0:0:0:1", "[0:0:0:0:0:0:0:1]", ["::1"], ["127.0.0.1"], marks=needs_ipv6),
        pytest.param("::", "localhost", ["::1", "127.0.0.1", "localhost"], [], marks=needs_ipv6),
    ],
)
def test_it_listens_there_and_nowhere_else(host, shown, reached, unreached):
    with listening(host, "0") as (sockets, name):
        port = sockets[0].getsockname()[1]
        assert name == shown
        assert all(listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for listener in sockets)
        assert all(answers(address, port) for address in reached)
        assert not any(answers(address, port) for address in unreached)
    assert not any(answers(address, port) for address in reached)


def refusal(host, port=None):
    with pytest.raises(UserError) as told, listening(host, port):
        pass
    assert len(str(told.value)) < 250
    return str(told.value)


@pytest.mark.parametrize(
    "host",
    ["no.such.host.invalid", "a..b", "x" * 70, "x" * 300, "http://localhost", "localhost:7860", "", "::g", "1.2.3.4.5"],
)
def test_an_unknown_host_is_told(host):
    assert re.match(r"The host '.*' \(--host or GRADIO_SERVER_NAME\) isn't known", refusal(host))


@pytest.mark.parametrize("host", ["192.0.2.1", pytest.param("2001:db8::1", marks=needs_ipv6)])
def test_an_address_of_another_machine_is_told(host):
    assert f"can't listen at {host}, port 7860 to 7959: Cannot assign" in refusal(host)


@pytest.mark.parametrize("port", ["-1", "65536", "70000", "abc", "7.5", "0x10", "٣", " ", "9" * 5000, "7860 7861"])
def test_a_port_that_is_none_is_told(port):
    assert "port (--port or GRADIO_SERVER_PORT) must be a whole number from 0 to 65535" in refusal("127.0.0.1", port)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "localhost", pytest.param("::", marks=needs_ipv6)])
def test_a_port_that_was_asked_for_is_the_one_or_none(host):
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        assert f"port {port}: Address already in use. Choose another --port" in refusal(host, str(port))
    with listening(host, str(port)) as (sockets, _):
        assert {listener.getsockname()[1] for listener in sockets} == {port}


@needs_ipv6
def test_a_port_taken_by_one_kind_of_address_is_free_in_the_other():
    with listening("127.0.0.1", "0") as (sockets, _), listening("::1", str(sockets[0].getsockname()[1])):
        pass


def test_without_one_the_first_free_port_is_taken(monkeypatch):
    with listening("127.0.0.1", None) as (first, _), listening("127.0.0.1", "") as (second, _):
        ports = [sockets[0].getsockname()[1] for sockets in (first, second)]
        assert 7860 <= ports[0] < ports[1] < 7960
        monkeypatch.setenv("GRADIO_NUM_PORTS", str(ports[1] - 7859))
        assert f"port 7860 to {ports[1]}: Address already" in refusal("127.0.0.1")
    for bad in ("0", "-5", "many", "1e3", "60000"):
        monkeypatch.setenv("GRADIO_NUM_PORTS", bad)
        assert "GRADIO_NUM_PORTS must be a whole number from 1" in refusal("127.0.0.1")


def test_variables_that_the_page_does_not_obey_are_dropped_and_told(monkeypatch, caplog):
    caplog.set_level("INFO", "vtw_demo")
    obeyed = {
        "GRADIO_SERVER_NAME": "::1", "GRADIO_SERVER_PORT": "1", "GRADIO_NUM_PORTS": "2", "GRADIO_TEMP_DIR": "x",
        "GRADIO_ROOT_PATH": "/demo", "GRADIO_SHARE": "1", "GRADIO_SHARE_SERVER_ADDRESS": "x:1",
        "GRADIO_ANALYTICS_ENABLED": "False",
    }  # fmt: skip
    others = ("DEBUG", "NUM_WORKERS", "DEFAULT_CONCURRENCY_LIMIT", "ALLOWED_PATHS", "WATCH_DIRS", "VIBE_MODE", "NEW")
    for name, value in (obeyed | {f"GRADIO_{name}": "x" for name in others}).items():
        monkeypatch.setenv(name, value)
    check_variables()
    assert {name: value for name, value in os.environ.items() if name.startswith("GRADIO_")} == obeyed
    (said,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.INFO]
    assert said.startswith("Not used by this page: GRADIO_ALLOWED_PATHS, GRADIO_DEBUG, GRADIO_DEFAULT")


@pytest.mark.parametrize("root", ["demo", "/", "//demo", " /demo", "ftp://x/y", "https://", "/a b", "x.org/demo"])
def test_a_root_path_that_means_nothing_is_told(root, monkeypatch):
    monkeypatch.setenv("GRADIO_ROOT_PATH", root)
    with pytest.raises(UserError, match="GRADIO_ROOT_PATH must be a path such as /demo or a whole address"):
        check_variables()


@pytest.mark.parametrize("root", ["", "/demo", "/demo/", "https://example.org/demo"])
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", *(["::1", "::"] if HAS_IPV6 else [])])
def test_the_address_that_is_printed_opens_the_page(host, root, monkeypatch, capsys):
    monkeypatch.setenv("GRADIO_ROOT_PATH", root)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    check_variables()
    with GuardedBlocks(Monitoring(), lambda: False) as page:
        gr.Textbox()
    with listening(host, "0") as place:
        page.launch(place)
        try:
            address = capsys.readouterr().out.split("Running on local URL:")[1].split()[0]
            assert httpx.get(address).status_code == 200
            assert httpx.get(f"{address}/health").json() == {"status": "ready"}
            assert httpx.get(f"{address}/config").json()["root"].endswith(root.rstrip("/"))
        finally:
            page.close()
