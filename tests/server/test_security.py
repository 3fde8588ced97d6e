"""Nobody gets where they don't belong: files, addresses, uploads, accounts. A real server, asked in every way."""

import json
import os
import re
import threading
import time
import urllib.parse
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import psutil
import pytest
from gradio_client import Client, handle_file

from tests.bad_input import encoded, scene
from tests.grids import nightly_but
from tests.page.test_bad_input import data_uri
from tests.serving import ROOT, started
from vtw_demo.page.command_line import build_parser, main
from vtw_demo.server.access import read_accounts
from vtw_demo.server.uploads import UNCLAIMED_SECONDS, Uploads

SECRETS = (
    Path("/etc/passwd"),
    ROOT / "app.py",
    ROOT / "vtw_demo" / "__main__.py",
    ROOT / "pyproject.toml",
    ROOT / "assets" / "embedded" / "model.safetensors",
    ROOT / "assets" / "embedded" / "config.json",
    Path("/proc/self/environ"),
)

EVERY_TIME = SECRETS[:2]


def holds_secret(content, secret):
    try:
        known = secret.read_bytes()[:4000]
    except OSError:
        return False
    return len(known) > 20 and known[:100] in content


def get(server, target, method="GET", headers=()):
    """Status, headers and body of an address that is sent as it is written."""
    connection = HTTPConnection(server.removeprefix("http://"), timeout=30)
    connection.putrequest(method, target, skip_accept_encoding=True)
    for name, value in headers:
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    content = answer.read(5_000_000)
    connection.close()
    return answer.status, dict(answer.getheaders()), content


@pytest.fixture(scope="module")
def listener():
    """An address in this machine, and what was asked of it."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(encoded(scene()))

        do_HEAD = do_POST = do_GET  # noqa: N815

        def log_message(self, *_):
            pass

    serving = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{serving.server_address[1]}", asked
    serving.shutdown()
    serving.server_close()


def addresses(path, folder):
    """Where a file might be had."""
    bare, climbing = str(path).lstrip("/"), f"{folder}/../../../../../..{path}"
    for name in (str(path), bare, f"/{path}", climbing, f"file://{path}", f"~/../..{path}", f"{folder}/..{path}"):
        quoted = urllib.parse.quote(name)
        everything = "".join(f"%{byte:02x}" for byte in name.encode())
        for spelled in {quoted, everything, urllib.parse.quote(quoted, safe="")}:
            yield from (f"/gradio_api/file={spelled}", f"/gradio_api/file/{spelled}", f"/file={spelled}")
            yield from (f"/file/{spelled}", f"/gradio_api/proxy={spelled}", f"/gradio_api/proxy=file://{spelled}")
        for route in (
            "static",
            "assets",
            "svelte",
            "gradio_api/stream/a/b/1",
            "gradio_api/custom_component/image/client",
        ):
            yield f"/{route}/{quoted}"
            yield f"/{route}/../../../../../../../../../..{urllib.parse.quote(str(path))}"
            yield f"/{route}/" + "%2e%2e%2f" * 10 + quoted.lstrip("/")
            yield f"/{route}/" + "..%5c" * 10 + quoted
        for option in ("__theme", "deep_link", "page", "view", "file", "path"):
            yield f"/?{option}={quoted}"
            yield f"/config?{option}=../../../../../..{quoted}"
    yield f"/..{path}"
    yield str(path)


@pytest.mark.parametrize("secret", nightly_but(EVERY_TIME, SECRETS), ids=str)
def test_no_address_gives_a_file(server, good, secret):
    folder = Path(good["path"]).parents[1]
    for address in addresses(secret, folder):
        _, _, content = get(server, address)
        assert not holds_secret(content, secret), address


def test_links_out_of_the_upload_folder_lead_nowhere(server, good, call):
    folder = Path(good["path"]).parent
    (folder / "link").symlink_to("/etc/passwd")
    (folder / "folder").symlink_to(ROOT)
    for target in (folder / "link", folder / "folder" / "app.py"):
        status, _, _ = get(server, f"/gradio_api/file={target}")
        assert status == 403
    _, said = call({"path": str(folder / "folder/assets/examples/one-shape.png")}, "What is it?", 6, 2)
    assert "There is no picture" in said


def test_an_upload_is_served_as_a_download_unless_it_is_a_picture(server, upload, good):
    status, headers, content = get(server, f"/gradio_api/file={good['path']}")
    assert (status, content) == (200, encoded(scene()))
    for name, text in (("a.svg", b"<svg/>"), ("a.html", b"<script>alert(1)</script>"), ("a.js", b"alert(1)")):
        path = upload(text, name)["path"]
        _, headers, _ = get(server, f"/gradio_api/file={urllib.parse.quote(path)}")
        assert headers["content-disposition"].startswith("attachment")
        assert headers["content-type"] == "application/octet-stream"
    for address in ("/gradio_api/info", f"/gradio_api/file={good['path']}"):
        _, headers, _ = get(server, address, headers=[("Origin", "http://example.org")])
        assert "access-control-allow-origin" not in headers


def references(name):
    kind = {"_type": "gradio.FileData"}
    yield from ({"path": name}, {"path": name, "meta": kind}, {"path": name, "url": name, "meta": kind})
    yield {"path": "picture.png", "url": name, "meta": kind}
    yield {"path": name, "meta": kind, "orig_name": "picture.png", "mime_type": "image/png", "is_stream": True}
    yield from (
        [{"path": name, "meta": kind}],
        {"image": {"path": name, "meta": kind}},
        {"url": name, "meta": kind},
        name,
    )


def test_no_function_reads_a_file_that_was_not_uploaded(call, server):
    picture = ROOT / "assets" / "examples" / "one-shape.png"
    names = [str(picture), "/etc/passwd", "assets/examples/one-shape.png", f"file://{picture}", "/dev/zero", "/"]
    for name in [*names, "/proc/self/fd/0", "a\0b", "x" * 5000, "~/picture.png"]:
        for reference in references(name):
            for function in ("compare", "examine"):
                result, said = call(reference, "What is it?", 6, 2, name=function)
                assert result is None, reference
                assert re.search("There is no picture", said)


def test_no_function_of_the_page_itself_does(http):
    """Private ones, too: whoever speaks as the page does may call them."""
    config = http.get("/config").json()
    reference = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
    asked = 0
    for dependency in config["dependencies"]:
        if not dependency["backend_fn"] or not dependency["inputs"]:
            continue
        body = {"data": [reference] * len(dependency["inputs"]), "fn_index": dependency["id"], "session_hash": "nobody"}
        for route in ("run/predict", "api/predict"):
            answer = http.post(f"/gradio_api/{route}", json=body)
            assert answer.status_code in (404, 500), dependency["api_name"]
            assert "There is no picture" in answer.text or "does not accept" in answer.text, answer.text
        if dependency["queue"] is not False:
            session = f"nobody-{dependency['id']}"
            assert http.post("/gradio_api/queue/join", json=body | {"session_hash": session}).status_code == 200
            said = http.get("/gradio_api/queue/data", params={"session_hash": session}).text
            assert "There is no picture" in said, dependency["api_name"]
        asked += 1
    assert asked > 20


def test_no_address_is_ever_fetched(server, call, ask, listener, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    (host, asked), query = listener, {"question": "What is it?", "layer": 6, "max_new_tokens": 2}
    for address in (f"http://{host}/picture.png", f"HTTP://{host}/a", f"//{host}/b", f"ftp://{host}/c"):
        for reference in references(address):
            result, _ = call(reference, "What is it?", 6, 2)
            assert result is None
            answer = ask("compare", image=reference, **query)
            assert answer.isError
        for route in ("file=", "proxy=", "file/"):
            for spelled in (address, urllib.parse.quote(address), urllib.parse.quote(address, safe="")):
                status, _, _ = get(server, f"/gradio_api/{route}{spelled}")
                assert status >= 400
    assert asked == []


def test_mcp_reads_no_file(ask, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    picture = str(ROOT / "assets" / "examples" / "one-shape.png")
    for tool in ("compare", "examine"):
        for reference in (*references(picture), *references("/etc/passwd"), f"file://{picture}"):
            answer = ask(tool, image=reference, question="What is it?", layer=6, max_new_tokens=2)
            assert answer.isError, reference
            assert "root:" not in answer.content[0].text
    answer = ask("random_scene", path="/etc/passwd", image={"path": picture})
    assert "root:" not in str(answer.content)


def test_uploads_stay_in_their_folder(http, good):
    folder = Path(good["path"]).parents[1]
    names = (
        "../../../escaped.png",
        "/tmp/escaped.png",
        "..\\..\\escaped.png",
        "a/../../escaped.png",
        "..",
        ".",
        "%2e%2e/x",
    )
    for name in (*names, "x" * 3000 + ".png", "a\r\nb.png", ".htaccess"):
        sent = http.post("/gradio_api/upload", files={"files": (name, encoded(scene()))})
        if sent.status_code == 200:
            (path,) = sent.json()
            assert Path(path).resolve().is_relative_to(folder), name
    for secret in ("/tmp/escaped.png", "/escaped.png", folder / "escaped.png", folder.parent / "escaped.png"):
        assert not Path(secret).exists()
    assert folder.stat().st_mode & 0o077 == 0


def test_what_the_page_does_not_use_is_closed(http):
    for method, path in (
        ("POST", "component_server"), ("POST", "process_recording"), ("GET", "vibe-code"), ("POST", "vibe-code"),
        ("POST", "vibe-edit"), ("POST", "undo-vibe-edit"), ("POST", "vibe-starter-queries"), ("POST", "stream/x"),
        ("POST", "stream/x/close"), ("GET", "stream/a/b/1/playlist.m3u8"), ("GET", "deep_link?session_hash=x"),
        ("GET", "run-history/buckets"), ("GET", "runs"), ("GET", "dev/reload"), ("GET", "profiling/traces"),
        ("GET", "custom_component/image/client/index.js/x"),
    ):  # fmt: skip
        assert http.request(method, f"/gradio_api/{path}", json={}).status_code == 404, path
    for path in ("/monitoring", "/monitoring/summary", "/monitoring/key", "/docs", "/redoc"):
        assert http.get(path).status_code == 404, path


def gone(path, seconds=15):
    deadline = time.monotonic() + seconds
    while Path(path).exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    return not Path(path).exists()


def test_an_upload_goes_with_the_session_of_a_program(server, tmp_path):
    uploads, file = [], tmp_path / "mine.png"
    file.write_bytes(encoded(scene(61)))
    client = Client(server, verbose=False)
    folder = Path(httpx.post(f"{server}/gradio_api/upload", files={"files": ("x", b"x")}).json()[0]).parents[1]
    for layer in (6, 7):
        client.predict(handle_file(file), "What is it?", layer, 2, api_name="/compare")
        uploads = list(folder.rglob("mine.png"))
        assert len(uploads) == 1
    client.close()
    assert gone(uploads[0])


def show(page, content):
    """Upload a picture on a page: where it was stored, once the page has taken it."""
    page.get_by_label("Remove").or_(page.get_by_label("Clear")).first.click()
    file = {"name": "page.png", "mimeType": "image/png", "buffer": content}
    with page.expect_response(re.compile(r"/upload(\?|$)")) as sent:
        page.locator("#picture input[type=file]").first.set_input_files(file)
    page.locator("#suggestions").filter(has_text="Describe the picture.").wait_for(timeout=60_000)
    return sent.value.json()[0]


def test_an_upload_goes_when_the_page_is_closed_even_if_nothing_was_asked(browser, server):
    pages = [browser.new_context().new_page() for _ in range(2)]
    for page in pages:
        page.goto(server)
        page.locator("#attention .js-plotly-plot").wait_for(timeout=60_000)
    shared, same = (show(page, encoded(scene(57))) for page in pages)
    assert shared == same, "the same picture is stored once"
    own = show(pages[0], encoded(scene(58)))
    pages[0].context.close()
    assert gone(own)
    assert Path(shared).exists(), "the other page still shows it"
    pages[1].context.close()
    assert gone(shared)


@pytest.fixture
def uploads(tmp_path):
    return Uploads(tmp_path / "uploads")


def stored(uploads, name, age=0.0):
    path = uploads.folder / name / "file"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x")
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_what_no_session_uses_is_swept_after_an_hour(uploads):
    kept = stored(uploads, "kept", 10**6)
    uploads.keep_present()
    old, new, used, asked = (
        stored(uploads, name, age)
        for name, age in (("old", UNCLAIMED_SECONDS + 9), ("new", 9), ("used", 10**6), ("asked", 10**6))
    )
    uploads.claim("program", asked)  # which gives it another hour
    with uploads.opened("visitor"):
        for file in (used, kept, asked):
            uploads.claim("visitor", file)
            os.utime(file, (0, 0))
        uploads.sweep()
        assert [path.exists() for path in (old, new, kept, used, asked)] == [False, True, True, True, True]
        assert not old.parent.exists()
        uploads.claim("program", asked)
    assert not used.exists()
    assert asked.exists(), "a program's picture stays when another session that sent the same one ends"
    assert kept.exists(), "a session's end leaves what the page itself shows"


def test_only_what_lies_in_the_folder_is_held(uploads, tmp_path):
    inside = stored(uploads, "a")
    (inside.parent / "link").symlink_to("/etc/passwd")
    assert uploads.holds(inside)
    outside = (
        tmp_path / "other",
        inside.parent / "link",
        f"{inside}/../../../x",
        "/etc/passwd",
        "a\0b",
        "http://x/y",
        "",
    )
    for path in outside:
        assert not uploads.holds(path), path


def test_accounts_are_read_from_a_file_or_a_text(tmp_path):
    file = tmp_path / "accounts"
    file.write_text("# who may come in\nada:lovelace\n\n bob : with: colons \n")
    expected = [("ada", "lovelace"), ("bob", " with: colons")]
    assert read_accounts(str(file), None) == expected
    assert read_accounts(None, "ada:lovelace") == [("ada", "lovelace")]
    assert read_accounts(str(file), "eve:ignored") == expected
    assert read_accounts(None, None) is None


@pytest.mark.parametrize(
    "content",
    [
        "\ufeffada:lovelace\r\nbob: ü:ber ÿ\r\n".encode(),
        "ada:lovelace\r\nbob: ü:ber ÿ".encode("utf-16"),
        "\ufeffada:lovelace\r\nbob: ü:ber ÿ\r\n".encode("utf-16-le"),
        "\ufeff# who\r\nada:lovelace\r\n\r\nbob: ü:ber ÿ\r\n".encode("utf-16-be"),
        "\ufeffada:lovelace\rbob: ü:ber ÿ\r".encode(),
        "ada:lovelace\nbob: ü:ber ÿ\n".encode(),
    ],
)
def test_accounts_are_read_as_windows_saves_them(content, tmp_path):
    file = tmp_path / "accounts.txt"
    file.write_bytes(content)
    assert read_accounts(str(file), None) == [("ada", "lovelace"), ("bob", " ü:ber ÿ")]
    assert read_accounts(None, "\ufeffada:love\u2028lace") == [("ada", "love\u2028lace")]


def test_accounts_in_another_encoding_are_refused_without_being_shown(tmp_path):
    file = tmp_path / "accounts.txt"
    file.write_bytes("ada:s3crét".encode("latin-1"))
    with pytest.raises(ValueError, match="not in UTF-8 or UTF-16") as refused:
        read_accounts(str(file), None)
    assert "s3cr" not in str(refused.value)
    for path in (tmp_path, tmp_path / "gone"):
        with pytest.raises(ValueError, match="--auth takes a file"):
            read_accounts(str(path), None)


@pytest.mark.parametrize("text", ["", "# nobody\n", "s3cret", ":s3cret", "ada:", "ada:s3cret\nada:s3cret2"])
def test_accounts_that_mean_nothing_are_refused_without_being_shown(text):
    with pytest.raises(ValueError, match="user:password on each line") as refused:
        read_accounts(None, text)
    assert "s3cret" not in str(refused.value)


def test_a_password_on_the_command_line_is_refused_and_not_echoed(capsys):
    assert main(["--model", "embedded", "--auth", "ada:s3cret"]) == 2
    shown = capsys.readouterr()
    assert "list of processes" in shown.err
    assert "s3cret" not in shown.out + shown.err


def test_help_says_how_to_let_only_some_in():
    assert "user:password on each line" in " ".join(build_parser().format_help().split())


def test_only_those_with_an_account_come_in(tmp_path, monkeypatch, small_folder):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    accounts = tmp_path / "accounts"
    accounts.write_bytes("ada:s3cret\r\nbob:s3cret2\r\n".encode("utf-16"))
    with started(tmp_path, "--model", small_folder, "--auth", accounts, TMPDIR=str(tmp_path)) as (url, process, log):
        listening = [c.laddr.ip for c in psutil.Process(process.pid).net_connections() if c.status == "LISTEN"]
        assert listening == ["127.0.0.1"]
        assert "s3cret" not in " ".join(psutil.Process(process.pid).cmdline())
        nobody = httpx.Client(base_url=url, trust_env=False)
        assert nobody.get("/").status_code == 200, "the form in which one logs in"
        assert "What am I looking at" not in nobody.get("/").text
        for path in (
            "/config", "/gradio_api/info", "/gradio_api/openapi.json", "/gradio_api/queue/status",
            "/gradio_api/queue/data?session_hash=x", "/gradio_api/file=x", "/gradio_api/heartbeat/x",
            "/gradio_api/mcp/", "/gradio_api/mcp/schema", "/gradio_api/mcp/sse",
            "/gradio_api/upload_progress?upload_id=x",
            "/gradio_api/call/compare/x", "/metrics",
        ):  # fmt: skip
            assert nobody.get(path).status_code == 401, path
        assert nobody.get("/health").json() == {"status": "ready"}
        assert "vtw_queue_length" in nobody.get("/metrics", auth=("ada", "s3cret")).text
        for path in (
            "call/compare",
            "call/v2/compare",
            "run/compare",
            "api/compare",
            "queue/join",
            "cancel",
            "reset",
            "mcp/",
        ):
            assert nobody.post(f"/gradio_api/{path}", json={"data": []}).status_code == 401, path
        assert nobody.post("/gradio_api/upload", files={"files": ("a.png", b"x")}).status_code == 401
        for account in (("ada", "s3cret2"), ("ada", ""), ("", ""), ("eve", "s3cret")):
            form = {"username": account[0], "password": account[1]}
            assert nobody.post("/login", data=form).status_code >= 400
            assert nobody.get("/gradio_api/mcp/schema", auth=account).status_code == 401
        initialize = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
        assert nobody.post("/gradio_api/mcp/", json=initialize).status_code == 401

        file = tmp_path / "picture.png"
        file.write_bytes(encoded(scene()))
        for account in (("ada", "s3cret"), ("bob", "s3cret2")):
            client = Client(url, auth=account, verbose=False)
            assert client.predict(handle_file(file), "What is it?", 6, 2, api_name="/compare")["full"]["tokens"]
            client.close()
        query = {"image": data_uri(encoded(scene())), "question": "What is it?", "layer": 6, "max_new_tokens": 2}
        call_tool = {"jsonrpc": "2.0", "id": 1, "method": "tools/call"} | {
            "params": {"name": "compare", "arguments": query}
        }
        headers = {"Accept": "application/json, text/event-stream"}
        answer = nobody.post("/gradio_api/mcp/", json=call_tool, headers=headers, auth=("ada", "s3cret"), timeout=60)
        result = json.loads(re.search(r"^data: (.*)$", answer.text, re.MULTILINE)[1])["result"]
        assert not result["isError"], result
        folders = list(tmp_path.glob("vtw-demo-*"))
        assert len(folders) == 1
    assert "s3cret" not in log.read_text()
    assert "Traceback" not in log.read_text()
    assert not folders[0].exists(), "with the server go all uploads"
