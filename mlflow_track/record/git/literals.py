"""Masks secrets in lines of files: literals in code, values in configuration.

In code `password = read_password()` holds no secret, and a masked expression would no longer run:
there only strings and numbers are masked. In other files a value needs no quotes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from mlflow_track.record.masking import (
    MASK,
    QUOTED,
    is_placeholder,
    is_random,
    is_secret,
    is_secret_name,
    is_token_name,
    mask_pairs,
    mask_tokens,
    may_hold_secret,
)

_CODE = frozenset(
    ".py .pyi .pyx .ipynb .c .cc .cpp .cu .cuh .h .hpp .rs .go .js .jsx .ts .tsx .mjs .java .kt "
    ".scala .swift .jl .lua .rb .php .cs .r .sql .m".split()
)
_NAME = r"(?<![\w.-])(?P<name>[\w.-]{1,120})"
# name = "…", name: str = "…", {"name": "…"}, x["name"] = "…", name == "…", Secret("…")
_ASSIGNED = re.compile(
    rf"(?P<before>{_NAME}[\"'`\])]*(?:\s*:\s*[\w.\[\]| ]{{1,60}}?)?\s*(?:=>|:=|[!=]?==?|:)\s*"
    rf"(?:\(\s*|(?:\w+\.)*(?:Secret\w*|str|bytes|String)\(\s*)?[rbfuRBFU]{{0,2}}){QUOTED}"
)
# add_argument("--name", default="…"), ["--name", "…"], getenv("NAME", "…"), setdefault("NAME", "…")
_DEFAULT = re.compile(
    rf"(?P<before>[\"']-{{0,2}}(?P<name>[\w.-]{{1,120}})[\"'].{{0,200}}?\bdefault\s*=\s*){QUOTED}"
)
_SECOND = re.compile(
    r"(?P<before>(?:(?:get|getenv|setdefault|setenv|putenv|pop)\(\s*[\"']|[\"']--)"
    rf"(?P<name>[\w.-]{{1,120}})[\"']\s*,\s*){QUOTED}"
)
_NUMBER = re.compile(rf"(?P<before>{_NAME}[\"'\]]*\s*(?:=|:)\s*)(?P<text>\d{{3,}})(?![\w.])")
_STRING = re.compile(QUOTED)
# NAME=value, name: value, <name>value
_PLAIN = re.compile(
    rf"(?P<before>{_NAME}[\"']?(?:\s+=\s*|\s*:\s+|>)(?:[|>][+-]?$)?)(?P<text>[^\s\"'#<*&{{\[(\\][^#<]*)"
)
# ENV NAME value, machine … login … password value
_SPACED = re.compile(
    rf"(?P<before>\b(?:ENV|ARG|setx?|setenv|login\s+\S{{1,200}})\s+{_NAME}\s+)(?P<text>\S+)"
)
# What follows on the next lines: name = (, "name":, name: |, name = \
_OPEN = re.compile(
    rf"{_NAME}(?P<quote>[\"']?)\]?(?:\s*:\s*[\w.\[\]| ]{{1,60}}?)?\s*(?P<sign>[=:])\s*"
    r"(?P<opened>\(|[|>][+-]?|\\|)\s*$"
)
_WORD_END = re.compile(r"[,;\s]")
_TRIPLES = ('"""', "'''")
_KEY_BEGIN, _KEY_END = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY"), "-----END"
_MOST_FOLLOWING = 20


def mask_lines(lines: Sequence[str], path: str) -> list[str]:
    """Successive lines of a file without the secrets in them; their number stays."""
    is_code = PurePosixPath(path).suffix.lower() in _CODE
    masked: list[str] = []
    waits_for = ""  # What ends the value that began in a line before.
    since = 0
    for line in lines:
        since += 1
        if waits_for:
            text, waits_for = _following(line, waits_for, is_code)
            waits_for = waits_for if since < _MOST_FOLLOWING or waits_for == _KEY_END else ""
            masked.append(text)
            continue
        if not may_hold_secret(line):
            masked.append(line)
            continue
        text = _masked_line(line, is_code)
        text, waits_for = _opening(text, is_code)
        since = 0
        masked.append(text)
    return masked


def _masked_line(line: str, is_code: bool) -> str:
    text = mask_tokens(line)
    for pattern in (_ASSIGNED, _DEFAULT, _SECOND):
        text = pattern.sub(_masked_literal, text)
    if is_code:
        text = _NUMBER.sub(_masked_number, text)
        # A connection string, or a header, inside of a string.
        return _STRING.sub(_masked_inside, text)
    for pattern in (_PLAIN, _SPACED):
        text = pattern.sub(_masked_plain, text)
    return mask_pairs(text)


def _masked_literal(found: re.Match[str]) -> str:
    name, text = found["name"], found["text"]
    if _is_shown(name, text):
        return found[0]
    return f"{found['before']}{found['quote']}{MASK}{found['quote']}"


def _masked_number(found: re.Match[str]) -> str:
    return f'{found["before"]}"{MASK}"' if is_secret(found["name"], found["text"]) else found[0]


def _masked_plain(found: re.Match[str]) -> str:
    text = found["text"].rstrip()
    first = _WORD_END.split(text, maxsplit=1)[0]
    if is_placeholder(first) or _is_shown(found["name"], text):
        return found[0]
    return f"{found['before']}{MASK}{found['text'].removeprefix(text)}"


def _masked_inside(found: re.Match[str]) -> str:
    text = found["text"]
    return f"{found['quote']}{mask_pairs(text, is_code=True)}{found['quote']}"


def _is_shown(name: str, text: str) -> bool:
    """Whether a value need not be masked."""
    if not text or is_placeholder(text) or not is_secret(name, text):
        return True
    return is_token_name(name) and not is_random(text)


def _opening(line: str, is_code: bool) -> tuple[str, str]:
    """The line, without the secret that begins in it; and what ends that one, if one does."""
    if _KEY_BEGIN.search(line) and _KEY_END not in line:
        return line, _KEY_END
    for triple in _TRIPLES:
        before, found, text = line.partition(triple)
        if found and triple not in text and is_secret_name(_last_name(before)):
            return f"{before}{triple}{MASK if text else ''}", triple
    found = _OPEN.search(line)
    if found is None or not is_secret_name(found["name"]):
        return line, ""
    # In code a colon ends `if token:`, unless the name is a key.
    if is_code and found["sign"] == ":" and not found["quote"]:
        return line, ""
    return line, {"(": ")", "|": "|", ">": "|"}.get(found["opened"][:1], "value")


def _last_name(before: str) -> str:
    names = re.findall(r"[\w.-]+", before.rstrip().rstrip("rbfuRBFU"))
    return names[-1] if names else ""


def _following(line: str, end: str, is_code: bool) -> tuple[str, str]:
    """A line of a value that began before, masked; and what ends the value, if it continues."""
    if end == _KEY_END:
        if _KEY_END in line:
            return line, ""
        return _all_of(line), end
    if end in _TRIPLES:
        text, found, rest = line.partition(end)
        return (MASK if text.strip() else text) + found + rest, "" if found else end
    if end == "|":
        return (_all_of(line), end) if line.startswith((" ", "\t")) else (line, "")
    masked = _STRING.sub(_masked_string, line)
    if end == ")":
        return masked, "" if ")" in line else end
    is_nested = re.match(r"\s*(?:- )?[\w.\"'-]+\s*[:=](?:\s|$)", line) is not None
    if not is_code and masked == line and line.startswith((" ", "\t")) and not is_nested:
        return _all_of(line), ""
    return masked, ""


def _masked_string(found: re.Match[str]) -> str:
    if not found["text"] or is_placeholder(found["text"]):
        return found[0]
    return f"{found['quote']}{MASK}{found['quote']}"


def _all_of(line: str) -> str:
    """The line with all of its text masked."""
    text = line.strip()
    return line.replace(text, MASK) if text else line
