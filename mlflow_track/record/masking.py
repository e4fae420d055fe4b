"""Which texts are secret, and how they look in a record: `***` in their place.

Passwords hide in URIs (`postgresql://user:password@host`), in their queries (`?token=…`), in words
of command lines (`--password=…`) and under names of params (`api_key`). Environment variables are
not recorded at all.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

MASK = "***"
# In a URI of HTTP a slash ends the host part; databases accept one in the password.
_HTTP_PASSWORD = re.compile(r"\b(https?://[^/@:\s]*):[^/\s]*@", re.IGNORECASE)
_PASSWORD = re.compile(r"\b((?!https?:)[a-z][\w+.-]*://[^/@:\s]*):[^\s\"'<>]*@", re.IGNORECASE)
# git and package indexes take a token where a user name stands: nobody is called like that.
_TOKEN = re.compile(r"(://)[\w.~%+-]{20,}@")
_SECRET_WORDS = (
    r"pass(?:word|wd|phrase)|pwd|secret|(?:api|access|secret|private|account)[_-]?key|credentials?"
    r"|(?:auth|access|api|hf|refresh|bearer|security|session)[_-]?token"
)
_QUERY = re.compile(
    rf"([?&;][\w-]*(?:{_SECRET_WORDS}|token|signature|\bkey|\bsig)=)[^&#;\s\"'<>]+", re.IGNORECASE
)
_SECRET_NAME = re.compile(rf"(?:^|.*[._/-])(?:{_SECRET_WORDS})", re.IGNORECASE)


def mask_password(text: str) -> str:
    """The text without the passwords and tokens of the URIs in it."""
    if "://" not in text:
        return text
    for pattern in (_HTTP_PASSWORD, _PASSWORD):
        text = pattern.sub(rf"\1:{MASK}@", text)
    text = _TOKEN.sub(rf"\1{MASK}@", text)
    return _QUERY.sub(rf"\1{MASK}", text)


def is_secret_name(name: str) -> bool:
    """Whether what stands under a name like this is a secret.

    `db.password`, `api_key` and `--hf-token` are; `max_tokens` and `pad_token` are not.
    """
    return _SECRET_NAME.fullmatch(name) is not None


def mask_command(words: Sequence[str]) -> list[str]:
    """A command line without the secrets in it: `--password=…`, `--password …`, `key=…`, URIs."""
    masked: list[str] = []
    is_next_secret = False
    for word in words:
        name, separator, _ = word.partition("=")
        if is_next_secret and not word.startswith("-"):
            masked.append(MASK)
        elif separator and is_secret_name(name.lstrip("-")):
            masked.append(f"{name}={MASK}")
        else:
            masked.append(mask_password(word))
        is_next_secret = word.startswith("-") and not separator and is_secret_name(name.lstrip("-"))
    return masked
