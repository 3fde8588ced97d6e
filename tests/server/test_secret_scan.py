import pytest

from vtw_demo.server.secret_scan import find_secrets

# Put together here, so that this file holds none.
LETTERS = "aB3" * 20
SECRETS = {
    "a Hugging Face token": "hf_" + LETTERS[:34],
    "an OpenAI or Anthropic key": "sk-" + "proj-" + LETTERS[:40],
    "a GitHub token": "ghp_" + LETTERS[:36],
    "a GitLab token": "glpat-" + LETTERS[:20],
    "an AWS key": "AKIA" + "Q3" * 8,
    "a Google key": "AIza" + LETTERS[:35],
    "a Slack token": "xoxb-" + "123456789012-" + LETTERS[:12],
    "a Stripe key": "sk_live_" + LETTERS[:24],
    "an npm token": "npm_" + LETTERS[:36],
    "a PyPI token": "pypi-" + "AgEIcHlwaS5vcmc" + LETTERS[:55],
    "a signed token (JWT)": "eyJ" + LETTERS[:20] + ".eyJ" + LETTERS[:30] + "." + LETTERS[:43],
    "a private key": "-----BEGIN " + "RSA PRIVATE KEY-----",
    "a password in an address": "https://someone:" + "some-word@example.com/x",
    "a password, key or token": 'password = "' + LETTERS[:20] + '"',
}


@pytest.mark.parametrize("what", SECRETS)
def test_what_looks_like_a_secret_is_found_with_its_line(what, tmp_path):
    (tmp_path / "notes.txt").write_text(f"first\nsecond {SECRETS[what]}\nthird\n")
    assert find_secrets(tmp_path, ["notes.txt"]) == [f"notes.txt, line 2, holds what looks like {what}."]


@pytest.mark.parametrize(
    "line",
    [
        "API_KEY=" + LETTERS[:24],
        "api_key: " + LETTERS[:24],
        '{"access_key": "' + LETTERS[:24] + '"}',
        "HF_" + "TOKEN='" + LETTERS[:24] + "'\r",
    ],
)
def test_what_is_called_a_secret_is_found(line, tmp_path):
    (tmp_path / "settings").write_text(f"{line}\nmore = 1\n")
    assert find_secrets(tmp_path, ["settings"]) == ["settings, line 1, holds what looks like a password, key or token."]


@pytest.mark.parametrize(
    "line",
    [
        "token = os.environ['HF_TOKEN']",
        'pad_token = "<|endoftext_padding_1|>"',
        "tokens = measure_attention_of_layer_12",
        "task-sk-something and shelf_life_of_things",
        "password = ask_for_password(accounts2)",
        "secret = 'correct horse'",
        "see https://example.com:8000/a@b and git@github.com:a/b",
        "https://{user}:{password}@example.com",
        "hf_hub_download hf_home",
        "-----BEGIN CERTIFICATE-----",
    ],
)
def test_what_only_speaks_of_secrets_is_not(line, tmp_path):
    (tmp_path / "code.py").write_text(f"{line}\n")
    assert find_secrets(tmp_path, ["code.py"]) == []


@pytest.mark.parametrize("path", [".env", "a/.env.production", "prod.env", ".netrc", "deep/id_rsa", "Server.PEM"])
def test_files_for_secrets_are_named(path, tmp_path):
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).touch()
    assert find_secrets(tmp_path, [path]) == [f"{path} is a file for secrets."]


def test_an_example_of_such_a_file_is_none_unless_it_holds_one(tmp_path):
    example = tmp_path / ".env.example"
    example.write_text("HF_TOKEN=\n")
    assert find_secrets(tmp_path, [".env.example"]) == []
    example.write_text(f"HF_TOKEN={SECRETS['a Hugging Face token']}\n")
    assert find_secrets(tmp_path, [".env.example"]) == [
        ".env.example, line 1, holds what looks like a Hugging Face token."
    ]


def test_each_line_is_told_once_and_binaries_are_looked_at(tmp_path):
    token = SECRETS["a Hugging Face token"].encode()
    other = token.replace(b"aB3", b"xY7")
    (tmp_path / "weights").write_bytes(bytes(20_000) + b"\n" + token + b"\n" + other + b" " + other + bytes(9))
    assert find_secrets(tmp_path, ["weights"], token.decode()) == [
        "weights, line 2, holds what looks like the token in use here.",
        "weights, line 3, holds what looks like a Hugging Face token.",
    ]
