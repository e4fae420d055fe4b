"""The command line and the `--config` file as one checked Config."""

from __future__ import annotations

import argparse
import difflib
import json
import sys
import typing
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, NoReturn

from mlflow_track.wording import size_of
from train.config import TYPES, Config, wanted

_TRUE, _FALSE = ("true", "1", "yes"), ("false", "0", "no")


def parse(arguments: Sequence[str]) -> tuple[Config, dict[str, str]]:
    """Settings from the command line and the `--config` file.

    Args:
        arguments: `sys.argv[1:]`. Every flag takes a value; of true or false, none means true.

    Returns:
        The settings, and for each that differs from its default where it came from. A wrong
        value or an unknown flag ends the process with status 2 and one line on stderr.
    """
    try:
        return _parse(arguments)
    except ValueError as error:
        print(f"train: {error}", file=sys.stderr)
        sys.exit(2)


def _parse(arguments: Sequence[str]) -> tuple[Config, dict[str, str]]:
    given = vars(_parser().parse_args(arguments))
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    if given.get("config"):
        values = _read_file(given["config"])
        sources = dict.fromkeys(values, f"config file {given['config']}")
    for name, text in given.items():
        values[name] = _convert(f"--{name.replace('_', '-')}", text, TYPES[name])
        sources[name] = "command line"
    config = Config(**values)
    defaults = {f.name: f.default for f in fields(Config)}
    return config, {n: s for n, s in sources.items() if getattr(config, n) != defaults[n]}


class _Once(argparse.Action):
    """Stores a value, and refuses a second: `mlflow run -e resume -P …` may bring one."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        if hasattr(namespace, self.dest):
            raise ValueError(
                f"{option_string} came twice, as {getattr(namespace, self.dest)!r} and as "
                f"{values!r}; give it once (for mlflow run: -P {self.dest}={values})"
            )
        setattr(namespace, self.dest, values)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)

    def parse_args(self, arguments: Sequence[str]) -> argparse.Namespace:  # type: ignore[override]
        known, unknown = self.parse_known_args([with_dashes(word) for word in arguments])
        if unknown:
            flags = [option for action in self._actions for option in action.option_strings]
            near = _near(unknown[0].partition("=")[0], flags)
            hint = f"; did you mean {near}?" if near else "; --help lists the flags"
            raise ValueError(f"unknown flag {unknown[0]!r}{hint}")
        return known


def _near(unknown: str, flags: Sequence[str]) -> str | None:
    """The flag that is meant: one with these initials (`--lr`), or spelled alike."""
    names = {flag.lstrip("-"): flag for flag in flags if flag.startswith("--")}
    given = unknown.lstrip("-")
    short = [n for n in names if "-" in n and "".join(w[0] for w in n.split("-")) == given]
    near = [*short, *difflib.get_close_matches(given, names, 1)]
    return names[near[0]] if near else None


def with_dashes(word: str) -> str:
    """A flag of a command line as --help shows it: `mlflow run -P max_steps=5` says --max_steps."""
    if not word.startswith("--"):
        return word
    flag, separator, value = word.partition("=")
    return flag.replace("_", "-") + separator + value


def _parser() -> _Parser:
    parser = _Parser(
        prog="python -m train",
        description=__doc__,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    groups: dict[str, Any] = {}
    for item in fields(Config):
        title = item.metadata["group"]
        group = groups.setdefault(title, None) or parser.add_argument_group(title)
        groups[title] = group
        default = "" if item.default is None else f" (default: {_show(item.default)})"
        kind = TYPES[item.name]
        word = "size" if item.name.endswith("_bytes") else _word(kind)
        choices = typing.get_args(kind) if typing.get_origin(kind) is Literal else ()
        alone: dict[str, Any] = {"nargs": "?", "const": "true"} if kind is bool else {}
        group.add_argument(
            f"--{item.name.replace('_', '-')}",
            action=_Once,
            **alone,
            metavar="{" + ",".join(choices) + "}" if choices else word.upper(),
            help=item.metadata["help"] + default,
        )
    return parser


def _read_file(path: str) -> dict[str, Any]:
    try:
        content = json.loads(Path(path).read_text())
    except OSError as error:
        raise ValueError(f"--config {path}: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"--config {path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"--config {path} must be a JSON object, got {type(content).__name__}")
    for name, value in content.items():
        if name not in TYPES:
            near = difflib.get_close_matches(name, TYPES, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"--config {path} has the unknown setting {name!r}{hint}")
        if isinstance(value, float) and TYPES[name] is int and value.is_integer():
            content[name] = int(value)
        elif isinstance(value, str) and name.endswith("_bytes"):
            content[name] = size_of(f"--config {path}: {name}", value)
        elif type(value) is int and TYPES[name] in (float, float | None):
            content[name] = float(value)
    return content


def _convert(flag: str, text: str, kind: Any) -> Any:
    """The value that `text` stands for. An empty text is an unset string."""
    if flag.endswith("-bytes"):
        return size_of(flag, text)
    if kind is bool:
        if text.lower() in (*_TRUE, *_FALSE):
            return text.lower() in _TRUE
    elif typing.get_origin(kind) is Literal:
        if text in typing.get_args(kind):
            return text
    elif kind == float | None and not text:
        return None
    elif kind in (int, float, float | None):
        try:
            number = float(text)
            if kind is not int:
                return number
            return int(text) if text.lstrip("+-").isdigit() else _integral(number)
        except (ValueError, OverflowError):
            pass
    else:
        return text or None if kind == str | None else text
    raise ValueError(f"{flag} must be {wanted(kind)}, got {text!r}")


def _integral(number: float) -> int:
    if not number.is_integer():
        raise ValueError
    return int(number)


def _word(kind: Any) -> str:
    words = {int: "int", float: "number", float | None: "number", bool: "true|false"}
    return words.get(kind, "text")


def _show(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
