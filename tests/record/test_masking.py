"""Secrets in URIs, command lines and names become ***; what is no secret stays as it is."""

from __future__ import annotations

import string
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_track.record import masking
from mlflow_track.record.masking import (
    is_secret,
    is_secret_name,
    mask_command,
    mask_password,
    mask_values,
)
from tests.secret_shapes import HARMLESS, SECRET, SHAPES

WORD = st.text(string.ascii_lowercase, min_size=1, max_size=12)
# Upper case, so that it cannot be a part of the other words by chance.
PASSWORD = st.text(string.ascii_uppercase + "%!$~*+=,;", min_size=1, max_size=30)
SCHEMES = ["postgresql", "postgresql+psycopg", "mysql", "http", "https", "redis", "ssh"]


@given(
    scheme=st.sampled_from(SCHEMES),
    user=st.one_of(st.just(""), WORD),
    password=PASSWORD,
    host=WORD,
    before=WORD,
    after=WORD,
)
def test_the_password_of_a_uri_is_masked_and_nothing_else(
    scheme: str, user: str, password: str, host: str, before: str, after: str
) -> None:
    text = f"{before} {scheme}://{user}:{password}@{host}:5432/db?x=1 {after}"
    masked = f"{before} {scheme}://{user}:***@{host}:5432/db?x=1 {after}"
    assert mask_password(text) == masked
    assert mask_password(masked) == masked


@given(password=st.text(string.ascii_uppercase + "/@:", min_size=1))
def test_what_sqlalchemy_takes_for_a_password_is_masked(password: str) -> None:
    # It takes everything up to an @, slashes and colons included.
    assert mask_password(f"postgresql://u:{password}@host/db") == "postgresql://u:***@host/db"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("https://ghp_0123456789abcdefghijkl@github.com/a/b", "https://***@github.com/a/b"),
        ("https://h/x?token=abc&step=3", "https://h/x?token=***&step=3"),
        ("https://b/k?X-Amz-Signature=0f3&X-Amz-Date=1", "https://b/k?X-Amz-Signature=***&X-Amz-Date=1"),
        ("postgresql://h/d?user=u&password=p#f", "postgresql://h/d?user=u&password=***#f"),
        ('{"uri": "mysql://u:p@h", "a": "x@y"}', '{"uri": "mysql://u:***@h", "a": "x@y"}'),
    ],
)  # fmt: skip
def test_tokens_are_masked(text: str, masked: str) -> None:
    assert mask_password(text) == masked


@pytest.mark.parametrize(
    "text",
    [
        "http://127.0.0.1:5000/#/experiments/1",
        "see http://host:80/x, mail a@b.c",
        "git@github.com:user/repo.git",
        "ssh://git@host:22/repo",
        "sqlite:////tmp/a@b/mlflow.db",
        "loss: 3 @ step 4",
        "https://h/x?step=3&key_frames=4&monkey=5",
    ],
)
def test_what_holds_no_secret_stays(text: str) -> None:
    assert mask_password(text) == text


@pytest.mark.parametrize(
    "name",
    "password db.password passwords hf_token github_token github-token hf_tokens TOKEN token "
    "tracking.token api-key api_keys AWS_SECRET_ACCESS_KEY secret authorization dbPassword "
    "githubToken openaiApiKey clientSecret password2 userPwd apiKey accessToken APIKey dbpassword "
    "DBPASSWORD api_key_2 model.hubToken wandbKey privateKey passPhrase openaiapikey "
    "awsSecretAccessKey jwt basicAuth storage_key".split(),
)
def test_names_of_secrets(name: str) -> None:
    assert is_secret_name(name) and is_secret(name, "x")
    assert not is_secret(name, "") and not is_secret(name, None) and not is_secret(name, True)


@pytest.mark.parametrize(
    "name",
    "max_tokens num_tokens tokens tokens_per_step max_token pad_token eos_token mask-token "
    "loss_per_token model.bos_token token_embeddings pad_token_id token_dim tokenizer key keys "
    "key_dim num_key_value_heads maxTokens padToken numTokens tokenEmbedding eosTokenId keyboard "
    "monkey keyPaddingMask tokenizer_name passes bypass compass sortKey public_key author "
    "password_length secret_dim tokens2 max_tokens_2 bosToken2 authors".split(),
)
def test_names_of_a_language_model_are_not_secrets(name: str) -> None:
    assert not is_secret_name(name) and not is_secret(name, "x")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("password", 12345, True),
        ("api_key", ["x"], True),
        ("credentials", {"user": "u"}, True),
        ("credentials", {}, False),
        ("token", ["x"], True),
        # Settings of tokens, and how many there are.
        ("token", {"dim": 4}, False),
        ("api_tokens", 1000, False),
        ("bits_each_token", 2.5, False),
        ("bits_each_token", "2.5", False),
        # Numbers of secrets.
        ("num_secrets", 3, False),
        ("max_passwords", "12", False),
        ("numPasswords", 12, False),
        ("passwords", 1000, False),
        ("passwords", ["a"], True),
        ("num_secrets", "three", True),
        ("password2", "x", True),
    ],
)
def test_a_secret_is_one_in_whatever_it_is_wrapped(name: str, value: Any, expected: bool) -> None:
    assert is_secret(name, value) is expected


@pytest.mark.parametrize(
    ("words", "masked"),
    [
        (["--password=x", "--lr=1"], ["--password=***", "--lr=1"]),
        (["--password", "x", "--lr", "1"], ["--password", "***", "--lr", "1"]),
        (["--password", "--lr", "1"], ["--password", "--lr", "1"]),
        (["--api-key", "-x", "-v"], ["--api-key", "***", "-v"]),
        (["--token", "x", "y"], ["--token", "***", "y"]),
        (["db.password=x", "model.pad_token=y"], ["db.password=***", "model.pad_token=y"]),
        (["--uri=http://u:p@h/"], ["--uri=http://u:***@h/"]),
        (["--max-tokens", "5"], ["--max-tokens", "5"]),
    ],
)
def test_command_lines(words: list[str], masked: list[str]) -> None:
    assert mask_command(words) == masked


# --- running text ---


@pytest.mark.parametrize("shape", SHAPES)
def test_a_secret_of_any_shape_is_masked_in_a_text(shape: str) -> None:
    text = SHAPES[shape].format(SECRET)
    for whole in (
        text,
        f"no answer ({text})",
        f"step=3 {text}, loss=1",
        text.replace("\n", "\r\n"),
    ):
        masked = mask_password(whole)
        assert "canary7" not in masked and "***" in masked
        assert mask_password(masked) == masked


@pytest.mark.parametrize("text", HARMLESS)
def test_a_text_of_a_training_stays(text: str) -> None:
    assert mask_password(text) == text


@given(text=st.text("key=: '\"/token@-\\password{}$", max_size=60))
def test_a_masked_text_is_masked_once(text: str) -> None:
    masked = mask_password(text)
    assert mask_password(masked) == masked


@pytest.mark.parametrize(
    "piece",
    [
        *("key", "a", "token=", "password: ", "a.b-", '\\"key', "curl ", "'key':'", "eyJ", "sk-"),
        *("-----BEGIN PRIVATE KEY-----", "x://a:", "token ", "?key", "{key:"),
    ],
)
def test_the_time_grows_with_the_length_and_not_its_square(piece: str) -> None:
    def seconds(count: int) -> float:
        begin = time.process_time()
        mask_password(piece * count + "key ://")
        return time.process_time() - begin

    seconds(100)
    count = 20_000 // len(piece)
    assert seconds(8 * count) < 24 * seconds(count) + 0.2


def test_a_token_with_a_line_break_is_masked_as_it_is_and_as_it_is_shown() -> None:
    options = {"token": "hunter2\n"}
    for text in ("got 'hunter2\\n'", "got hunter2\n", "got hunter2 here"):
        assert "hunter2" not in mask_values(text, options)


def test_without_the_patterns_of_texts_secrets_would_be_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The negative control."""
    monkeypatch.setattr(masking, "mask_pairs", lambda text: text)
    leaks = [shape for shape in SHAPES if SECRET in mask_password(SHAPES[shape].format(SECRET))]
    assert len(leaks) > 15
