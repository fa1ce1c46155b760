"""What may not be shared is replaced and told; what only looks like it stays."""

from __future__ import annotations

import base64
import json
import string
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshllm.board.scrub import entropy, scrub

_LETTERS = string.ascii_letters + string.digits
_HEX = "0123456789abcdef"


def drawn(count: int, letters: str = _LETTERS, seed: int = 1) -> str:
    """So many letters, the same in each run."""
    return "".join(Random(seed).choices(letters, k=count))


def _jwt() -> str:
    parts = [json.dumps(part).encode() for part in ({"alg": "HS256"}, {"sub": "1234567890"})]
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts) + f".{drawn(43)}"


def _pem(kind: str) -> str:
    lines = "\n".join(drawn(64, _LETTERS + "+/", seed) for seed in range(5))
    return f"-----BEGIN {kind}PRIVATE KEY-----\n{lines}\n-----END {kind}PRIVATE KEY-----"


# A text, and what its secret becomes.
SECRETS = [
    ("ghp_" + drawn(36), "github-token"),
    ("github_pat_" + drawn(22) + "_" + drawn(59), "github-token"),
    ("glpat-" + drawn(20), "gitlab-token"),
    ("sk-ant-api03-" + drawn(95), "anthropic-key"),
    ("sk-proj-" + drawn(48), "api-key"),
    ("sk-" + drawn(48), "api-key"),
    ("AKIA" + drawn(16, string.ascii_uppercase), "aws-key"),
    ("xoxb-" + drawn(12, string.digits) + "-" + drawn(24), "slack-token"),
    ("https://hooks.slack.com/services/T01234567/B01234567/" + drawn(24), "webhook"),
    ("AIza" + drawn(35), "google-key"),
    ("npm_" + drawn(36), "npm-token"),
    ("hf_" + drawn(34), "hugging-face-token"),
    ("sb_secret_" + "a" * 31, "supabase-key"),  # little entropy, and a real key all the same
    ("mesh1-" + drawn(90), "mesh-invite"),
    (drawn(10, string.digits) + ":AA" + drawn(33), "telegram-token"),
    (_jwt(), "jwt"),
    (_pem("RSA "), "private-key"),
    (_pem("OPENSSH "), "private-key"),
    (_pem("").rpartition("\n")[0], "private-key"),  # cut
    (f"aws_secret_access_key = {drawn(40)}", "secret"),
    (f"DB_PASSWORD={drawn(14)}", "secret"),
    (f'"api_key": "{drawn(32)}"', "secret"),
    ("password = 'Tr0ub4dor&3'", "secret"),
    ("  db_password: CyyRqEWjUEsCWjsL", "secret"),
    ("password=$ecr3tPa55w0rd", "secret"),
    ("password=my-r3al-0ne", "secret"),
    (f"tool --api-key {drawn(24)}", "secret"),
    (f"//registry.npmjs.org/:_authToken={drawn(36)}", "secret"),
    (f"curl -u admin:{drawn(14)} x", "password"),
    (f"postgres://app:{drawn(16)}@db:5432/app", "password"),
    (f"curl -H 'Authorization: Bearer {drawn(40)}'", "authorization"),
    (f"X-Api-Key: {drawn(32)}", "authorization"),
    ("Cookie: session=abc123; theme=dark", "cookie"),
    ("mail ada.lovelace+x@analytical-engine.org", "email"),
    ("call +44 20 7946 0958", "phone"),
    ("4539 1488 0343 6467", "card"),
    ("DE89 3704 0044 0532 0130 00", "iban"),
    ("at 192.168.17.3 and on", "private-address"),
    ("fd12:3456:789a::1", "private-address"),
    ("3c:22:fb:12:34:56", "mac-address"),
]

CLEAN = [
    "ask @claude-code@annes-macbook.local, @agent@gpu.analytical-engine.org or bob@studio.lan",
    "STATUS: [mesh/llm branch:main] task-12 of disk-full risk-management done, ask-me-anything-about-this-later-today",
    "commit da39a3ee5e6b4b0d3255bfef95601890afd80709 fixes it",
    "550e8400-e29b-41d4-a716-446655440000",
    "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    '"integrity": "sha512-9Qa5b+9n69IEuxk4FiNcavXqkixb7lD03BLtdTeu2bbORnLZQrw+pR/exiSg7SoODeu08yxS47mdZa9ddMNM3A=="',
    "token = tokens[index]",
    "password: str, api_key: ApiKey",
    "def __init__(self, private_key: Ed25519PrivateKey, path: Path) -> None:",
    "secret = os.environ['SECRET']",
    "password = getpass.getpass()",
    "api_key=${API_KEY} token=<your-token> password=changeme secret=xxxxxxxx token=$TOKEN_2 password=your-password",
    "max_tokens: 4096, prompt_tokens=1234567890123",
    "the password must be long, the token: see the docs",
    "getUserAuthenticationTokenFromRequestHeaderOrCookie",
    "git@github.com:mesh/llm.git and lodash@4.17.21 and user@example.com",
    "version 10.2.3.4 is v10.2.3.4, numpy==10.1.2.3, 127.0.0.1 and 203.0.113.7",
    "-----BEGIN RSA PRIVATE KEY----- is how it begins",
    "eyJhbGciOiJub25l is base64, and 1234567890123456 is no card",
    "https://user@host/path and http://localhost:9337/v1",
    "/home/you/project and ~/project",
]


@pytest.mark.parametrize(("text", "label"), SECRETS)
@pytest.mark.parametrize("frame", ["{}", "STATUS see {}", "it is\n{}\nthere"])
def test_secret_is_replaced_and_told(text: str, label: str, frame: str) -> None:
    scrubbed = scrub(frame.format(text))
    assert f"[{label}]" in scrubbed.text
    assert dict(scrubbed.replaced) == {label: 1}
    assert scrubbed.report == f"1 {label}"


@pytest.mark.parametrize("text", CLEAN)
def test_what_is_no_secret_stays(text: str) -> None:
    scrubbed = scrub(text)
    assert scrubbed.text == text
    assert not scrubbed.replaced
    assert scrubbed.report == ""


def test_only_the_secret_is_replaced() -> None:
    secret = drawn(20)
    text = f"export DB_PASSWORD='{secret}' # see https://app:{secret}@db/x"
    assert scrub(text).text == "export DB_PASSWORD='[secret]' # see https://app:[password]@db/x"


def test_home_folder_becomes_a_tilde() -> None:
    assert scrub("/home/ada/src/x.py and /Users/ada/y").text == "~/src/x.py and ~/y"
    assert scrub(r"C:\Users\Ada\src").text == r"~\src"


def test_names_of_the_machine_are_replaced() -> None:
    scrubbed = scrub(
        "on Ada-Laptop, not ada-laptop2; by adal", [("ada-laptop", "host"), ("adal", "user"), ("x", "user")]
    )
    assert scrubbed.text == "on [host], not ada-laptop2; by [user]"
    assert scrubbed.report == "1 host, 1 user"


def test_padding_does_not_hide_a_token() -> None:
    """Nothing is judged by the entropy of a whole line."""
    assert "[github-token]" in scrub("a" * 2000 + " ghp_" + drawn(36) + " " + "a" * 2000).text


def test_entropy_is_that_of_shannon() -> None:
    assert entropy("") == entropy("aaaa") == 0.0
    assert entropy("abcd") == 2.0


_PIECES = st.sampled_from([text for text, _ in SECRETS] + CLEAN)


@given(st.lists(st.one_of(st.text(), _PIECES, st.sampled_from(list("=:\"'@/\n -")))).map("".join))
def test_scrubbing_again_changes_nothing(text: str) -> None:
    once = scrub(text)
    again = scrub(once.text)
    assert again.text == once.text
    assert not again.replaced
    assert (once.text == text) is not bool(once.replaced)
