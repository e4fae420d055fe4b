"""Masks secrets in a record: `***` in their place.

Passwords hide in URIs (`postgresql://user:password@host`), in their queries (`?token=…`), in
command lines (`--password=…`), under names of params (`api_key`), and in running text: as an
assignment (`password=…`), as a header (`Authorization: Bearer …`), or as a token that shows by its
form whose it is (`ghp_…`). Environment variables are not recorded at all.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

MASK = "***"
# In a URI of HTTP a slash ends the host part; databases accept one in the password.
_HTTP_PASSWORD = re.compile(r"\b(https?://[^/@:\s]*):[^/\s]*@", re.IGNORECASE)
_PASSWORD = re.compile(
    r"\b((?!https?:)[a-z][\w+.-]{0,40}://[^/@:\s]{0,200}):[^\s\"'<>]{0,2000}@", re.IGNORECASE
)
# git and package indexes take a token in the place of a user name: no user name looks like this.
_TOKEN = re.compile(r"(://)[\w.~%+-]{20,}@")
_WEBHOOK = re.compile(
    r"(://(?:hooks\.slack\.com/services|discord(?:app)?\.com/api/webhooks|[\w.-]+\.webhook\.office"
    r"\.com/webhookb2)/)[^\s\"'<>?#]+",
    re.IGNORECASE,
)
_VENDORS = (
    r"openai|anthropic|mistral|cohere|replicate|hugging[_-]?face|hf|wandb|comet|neptune|aws|gcp|"
    r"google|azure|stripe|sendgrid|datadog"
)
_SECRET_WORDS = (
    r"pass(?:wd|[_-]?(?:word|phrase|code|key))s?|pwd|secrets?|credentials?|authorization|cookies?|jwt"
    r"|(?:api|access|secret|private|priv|account|storage|subscription|license|deploy|consumer"
    r"|master|encryption|signing|ssh|gpg|tls|ssl|hmac|aes|rsa|auth|jwt"
    rf"|{_VENDORS})[_-]?keys?"
    r"|(?:auth|access|api|hf|refresh|bearer|security|session|github|gitlab|slack)[_-]?token"
    r"|(?:basic|http|proxy)[_-]?auth|shared[_-]?access[_-]?signature"
)
_OPTION = re.compile(r"--[a-z]", re.IGNORECASE)
_QUERY = re.compile(
    rf"([?&;][\w-]{{0,80}}(?:{_SECRET_WORDS}|token|signature|\bkey|\bsig)=)[^&#;\s\"'<>]+",
    re.IGNORECASE,
)
# The last words of a name; these words are known even where nothing stands before them.
_SECRET_NAME = re.compile(
    rf"(?:^|.*[._/-])(?:{_SECRET_WORDS})|.*(?:password|passwd|passphrase|pwd|secret|api[_-]?key)",
    re.IGNORECASE,
)
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
# Numbers under such names count secrets.
_COUNT_NAME = re.compile(r"(?:.*[._/-])?(?:num|n|max|min|count|total|max_num)[._/-].*|.*s", re.I)
# camelCase, with a number behind it (`password2`).
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_NUMBER_BEHIND = re.compile(r"[._/-]?\d+$")
# Tokens that their makers gave a beginning by which they are found.
_KNOWN_TOKENS = re.compile(
    r"(?<![\w-])(?:sk-(?=[\w-]*\d)[\w-]{16,}|[srp]k_(?:live|test)_\w{8,}|gh[pousr]_\w{16,}"
    r"|github_pat_\w{16,}|gl(?:pat|sa|ptt|dt|rt)[-_][\w-]{16,}|hf_[A-Za-z0-9]{24,}"
    r"|xox[abeposr](?:\.xox[bp])?-[\w-]{8,}|xapp-[\w-]{8,}|(?:AKIA|ASIA)[A-Z0-9]{12,}"
    r"|AIza[\w-]{24,}|ya29\.[\w-]{8,}|npm_\w{24,}|pypi-\w[\w-]{16,}|dckr_pat_[\w-]{16,}"
    r"|SG\.[\w-]{8,}\.[\w-]{8,}|eyJ[\w-]{6,}\.[\w-]{6,}(?:\.[\w-]*)?|r8_\w{24,}|nvapi-[\w-]{16,}"
    r"|key-[0-9a-f]{32}|dapi[0-9a-f]{32}|gsk_\w{24,}|xai-\w{24,}|AGE-SECRET-KEY-1\w+)"
)
_BEARER = re.compile(r"\b(bearer\s+)(?=[^\s\"']*[\d._=-])[\w.~+/=-]{6,}", re.IGNORECASE)
_PRIVATE_KEY = re.compile(
    r"(-----BEGIN [A-Z ]*PRIVATE KEY(?: BLOCK)?-----)(?:(?!-----BEGIN).)*?(-----END|\Z)", re.DOTALL
)
_PRIVATE_KEY_START = "PRIVATE KEY"
_CURL = re.compile(r"(\bcurl\b.{0,500}?\s(?:-u|--user)[ =][\"']?[^\s:\"']+:)[^\s\"']+")
# Words that the name of a secret has in it; a bounded name keeps a long word from taking long.
_NAME = (
    r"(?<![\w.-])(?P<name>[\w.-]{0,60}?(?:pass|pwd|secret|credential|authorization|cookie|jwt|key"
    r"|token|auth|signature)[\w.-]{0,60})"
)
QUOTED = r"(?P<quote>[\"'`])(?P<text>(?:\\.|(?!(?P=quote)).)*)(?P=quote)"
# name=, name: , "name": , --name ; also inside of a text with \" in it.
_BEFORE = re.compile(
    rf"{_NAME}\\{{0,3}}[\"'\])]*(?P<sign>\s{{0,8}}(?:=>|:=|={{1,2}}|:(?!//))\s{{0,8}}|\s{{1,8}})",
    re.IGNORECASE,
)
_VALUE = re.compile(
    rf"\\{{1,3}}(?P<escaped>[\"'])(?P<inner>.*?)\\{{1,3}}(?P=escaped)|{QUOTED}|[\"']?(?P<bare>"
    r"(?:(?:bearer|basic|token|apikey|digest)\s+)?(?:\$?\{[^{}\s]*\}|[^\s\"'<>,;&)}\]#\\])+)",
    re.IGNORECASE,
)
_HEADER = re.compile(r"(authorization[\"']?\s*[:=]\s*[\"']?)[^\"'\n]+", re.IGNORECASE)
# Stands in for a value.
_PLACEHOLDER = re.compile(
    r"\$?\{[^{}]*\}\}?|\$\([^()]*\)|\$[A-Z_][A-Z0-9_]*|%\(\w+\)[sdrf]|%[sdrf]|<[^<>]*>|\[[A-Z]+\]"
    r"|\*+|[|>][+-]?|\(|none|null|true|false",
    re.IGNORECASE,
)
_HINT = re.compile(
    r"://|pass|pwd|secret|credential|authorization|cookie|jwt|bearer|token|key|auth|signature"
    r"|sk[-_]|[rp]k_|gh[pousr]_|github_|gl(?:pat|sa|ptt|dt|rt)|hf_|xox|xapp|AKIA|ASIA|AIza|ya29|npm_"
    r"|pypi-|dckr_|SG\.|eyJ|r8_|nvapi|dapi|xai-|curl",
    re.IGNORECASE,
)
_LONG_TOKEN, _SHORT_TOKEN = 12, 4


def may_hold_secret(text: str) -> bool:
    """Whether a text has anything in it that `mask_password` looks at more closely."""
    return _HINT.search(text) is not None


def mask_password(text: str) -> str:
    """The text without the passwords, tokens and keys in it."""
    if not may_hold_secret(text):
        return text
    return mask_pairs(mask_tokens(text))


def mask_tokens(text: str) -> str:
    """The text without secrets that show by their form: in URIs, of known makers, private keys."""
    if "://" in text:
        for pattern in (_HTTP_PASSWORD, _PASSWORD):
            text = pattern.sub(rf"\1:{MASK}@", text)
        text = _TOKEN.sub(rf"\1{MASK}@", text)
        text = _WEBHOOK.sub(rf"\1{MASK}", text)
        text = _QUERY.sub(rf"\1{MASK}", text)
    text = _KNOWN_TOKENS.sub(MASK, text)
    text = _BEARER.sub(rf"\1{MASK}", text)
    text = _CURL.sub(rf"\1{MASK}", text)
    if _PRIVATE_KEY_START in text:
        text = _PRIVATE_KEY.sub(rf"\1{MASK}\2", text)
    return text


def mask_pairs(text: str, *, is_code: bool = False) -> str:
    """The text without values that a name beside them says are secret.

    In code a colon and a space mostly stand in a sentence, as in "password: must be longer".
    """
    text = _HEADER.sub(_masked_header, text)
    pieces: list[str] = []
    at = 0
    for before in _BEFORE.finditer(text):
        if before.start() < at or not is_secret_name(before["name"]):
            continue
        found = _VALUE.match(text, before.end())
        if found is None:
            continue
        value = found[group := found.lastgroup or 0]
        is_sure = not is_code or "=" in before["sign"] or is_random(value)
        if is_sure and _is_to_mask(before, value):
            pieces += [text[at : found.start(group)], MASK]
            at = found.end(group)
    return "".join(pieces) + text[at:]


def _is_to_mask(before: re.Match[str], value: str) -> bool:
    name, sign = before["name"], before["sign"]
    if not sign.strip() and not name.startswith("--"):
        return False
    if is_placeholder(value) or not is_secret(name, value):
        return False
    # In a text about language models a token is mostly one of theirs.
    return sign == "=" or not is_token_name(name) or is_random(value)


def _masked_header(found: re.Match[str]) -> str:
    value = found[0].removeprefix(found[1])
    return found[0] if is_placeholder(value) else f"{found[1]}{MASK}"


def is_placeholder(value: str) -> bool:
    """Whether a text only stands for a value: `${TOKEN}`, `{password}`, `%s`, `<token>`, `***`."""
    return _PLACEHOLDER.fullmatch(value.strip()) is not None


def is_random(value: str) -> bool:
    """Whether a text may be a secret token, rather than a word or a token of a vocabulary."""
    has_digit = any(character.isdigit() for character in value)
    is_long = len(value) >= (_SHORT_TOKEN if has_digit else _LONG_TOKEN)
    return is_long and not value.startswith(("<", "[")) and " " not in value.strip()


def is_secret_name(name: str) -> bool:
    """Whether a value under this name is a secret.

    `db.password`, `apiKey`, `password2` and `--github-token` are; `max_tokens` and `pad_token` are
    not.
    """
    return _is_secret_word(name) or is_token_name(name)


def is_secret(name: str, value: Any) -> bool:
    """Whether this value under this name is a secret, or a list or mapping of secrets.

    Empty, true and false values reveal nothing; a token is a text, while a number counts them, as
    it does under names like `num_secrets`.
    """
    if not value or isinstance(value, bool):
        return False
    texts = value if isinstance(value, list) else [value]
    is_number = all(not isinstance(text, str) or _is_number(text) for text in texts)
    if _is_secret_word(name):
        counts = is_number and not isinstance(value, dict) and _COUNT_NAME.fullmatch(name)
        return not counts
    return is_token_name(name) and any(
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
            # A client may leave out the line break that a file has brought along, or write it.
            for form in (value, repr(value)[1:-1], value.strip()):
                text = text.replace(form, MASK) if form else text
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


@functools.lru_cache(maxsize=4096)
def _plain(name: str) -> str:
    """A name with its words apart, and without the number behind them."""
    return _NUMBER_BEHIND.sub("", _HUMP.sub("_", name))


def _is_secret_word(name: str) -> bool:
    return _SECRET_NAME.fullmatch(_plain(name)) is not None


def is_token_name(name: str) -> bool:
    """Whether a text under this name is a secret token, unlike one of a language model."""
    match = _TOKEN_NAME.fullmatch(_plain(name))
    return match is not None and (match["kind"] or "").lower() not in _KINDS_OF_TOKEN


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
