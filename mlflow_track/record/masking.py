"""Masks secrets in a record: `***` in their place.

Passwords hide in URIs (`postgresql://user:password@host`), in their queries (`?token=…`), in
command lines (`--password=…`) and under names of params (`api_key`). Environment variables are
not recorded at all.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

MASK = "***"
# In a URI of HTTP a slash ends the host part; databases accept one in the password.
_HTTP_PASSWORD = re.compile(r"\b(https?://[^/@:\s]*):[^/\s]*@", re.IGNORECASE)
_PASSWORD = re.compile(r"\b((?!https?:)[a-z][\w+.-]*://[^/@:\s]*):[^\s\"'<>]*@", re.IGNORECASE)
# git and package indexes take a token where a user name stands: nobody is called like that.
_TOKEN = re.compile(r"(://)[\w.~%+-]{20,}@")
_SECRET_WORDS = (
    r"pass(?:word|wd|phrase)s?|pwd|secrets?|credentials?|authorization"
    r"|(?:api|access|secret|private|account|encryption|signing|ssh|wandb|openai)[_-]?keys?"
    r"|(?:auth|access|api|hf|refresh|bearer|security|session)[_-]?token"
)
_OPTION = re.compile(r"--[a-z]", re.IGNORECASE)
_QUERY = re.compile(
    rf"([?&;][\w-]*(?:{_SECRET_WORDS}|token|signature|\bkey|\bsig)=)[^&#;\s\"'<>]+", re.IGNORECASE
)
_SECRET_NAME = re.compile(rf"(?:^|.*[._/-])(?:{_SECRET_WORDS})", re.IGNORECASE)
# A token may as well be one of a language model: of its vocabulary, or of those that are counted.
_TOKEN_NAME = re.compile(
    r"(?:^|(?:.*[._/-])?(?P<kind>[^._/-]+)[._/-])token"
    r"|(?:^|.*[._/-])(?:auth|access|api|hf|refresh|bearer|security|session)[_-]?tokens",
    re.IGNORECASE,
)
_KINDS_OF_TOKEN = frozenset(
    "pad padding eos bos eot eod unk unknown mask masked sep separator cls class start begin end "
    "stop special additional extra added new next last first prefix suffix middle fim infill image "
    "img audio video vision visual text word char byte prompt context target source src tgt query "
    "register memory mem dist distill distillation time null empty blank dummy decoder encoder "
    "tool system user assistant think max min num n per by of".split()
)


def mask_password(text: str) -> str:
    """The text without the passwords and tokens of the URIs in it."""
    if "://" not in text:
        return text
    for pattern in (_HTTP_PASSWORD, _PASSWORD):
        text = pattern.sub(rf"\1:{MASK}@", text)
    text = _TOKEN.sub(rf"\1{MASK}@", text)
    return _QUERY.sub(rf"\1{MASK}", text)


def is_secret_name(name: str) -> bool:
    """Whether a value under this name is a secret.

    `db.password`, `api_key` and `--github-token` are; `max_tokens` and `pad_token` are not.
    """
    return _SECRET_NAME.fullmatch(name) is not None or _is_token_name(name)


def is_secret(name: str, value: Any) -> bool:
    """Whether this value under this name is a secret, or a list or mapping of secrets.

    Empty, true and false values reveal nothing; and a token is a text, while a number counts them.
    """
    if not value or isinstance(value, bool):
        return False
    if _SECRET_NAME.fullmatch(name):
        return True
    texts = value if isinstance(value, list) else [value]
    return _is_token_name(name) and any(
        isinstance(text, str) and not _is_number(text) for text in texts
    )


def mask_options(options: Mapping[str, str]) -> dict[str, str]:
    """Options by name, the secret ones as `***`."""
    return {
        name: MASK if is_secret(name, value) else mask_password(value)
        for name, value in options.items()
    }


def mask_values(text: str, options: Mapping[str, str]) -> str:
    """The text without passwords, and without the values of those options that are secret."""
    for name, value in options.items():
        if is_secret(name, value):
            text = text.replace(value, MASK)
    return mask_password(text)


def mask_command(arguments: Sequence[str]) -> list[str]:
    """A command line without the secrets in it: `--password=…`, `--password …`, `key=…`, URIs."""
    masked: list[str] = []
    secret_option = ""
    for argument in arguments:
        name, separator, value = argument.partition("=")
        # A secret may begin with a dash; with two and a letter it is the next option.
        if is_secret(secret_option, argument) and not _OPTION.match(argument):
            masked.append(MASK)
            secret_option = ""
            continue
        if separator and is_secret(name.lstrip("-"), value):
            masked.append(f"{name}={MASK}")
        else:
            masked.append(mask_password(argument))
        secret_option = name.lstrip("-") if argument.startswith("-") and not separator else ""
    return masked


def _is_token_name(name: str) -> bool:
    match = _TOKEN_NAME.fullmatch(name)
    return match is not None and (match["kind"] or "").lower() not in _KINDS_OF_TOKEN


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
