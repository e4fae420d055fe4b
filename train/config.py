"""The settings of the job: one frozen dataclass, and the flags made from it."""

from __future__ import annotations

import argparse
import difflib
import json
import sys
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, NoReturn

_TRUE, _FALSE = ("true", "1", "yes"), ("false", "0", "no")


def _setting(default: Any, help: str, *, group: str) -> Any:
    return field(default=default, metadata={"help": help, "group": group})


@dataclass(frozen=True, kw_only=True)
class Config:
    """Every setting of the job; checked at birth.

    Raises:
        ValueError: A value is invalid; the message names the field, the expectation and the value.
    """

    experiment: str | None = _setting(None, "experiment to file the run under", group="run")
    run_name: str | None = _setting(None, "name of the run", group="run")
    resume: str | None = _setting(None, "never, auto, must or a run id", group="run")
    config: str | None = _setting(None, "JSON file of settings; flags beat it", group="run")
    data: str | None = _setting(
        None,
        "text, or tokens (.npy, .npz, .bin of uint16 or llm.c's); Python's help texts",
        group="data",
    )
    max_steps: int = _setting(1000, "optimizer steps of the whole run", group="training")
    warmup_steps: int = _setting(100, "steps of linear warm-up", group="training")
    max_checkpoints: int = _setting(5, "checkpoints to save at most", group="run")
    learning_rate: float = _setting(3e-3, "peak learning rate", group="training")
    min_learning_rate: float = _setting(1e-4, "learning rate at the last step", group="training")
    weight_decay: float = _setting(0.1, "AdamW's decay of matrices", group="training")
    grad_clip: float = _setting(1.0, "largest norm of the gradient; 0: none", group="training")
    batch_size: int = _setting(16, "sequences in a step", group="training")
    context_length: int = _setting(64, "tokens in a sequence", group="model")
    d_model: int = _setting(128, "width of the model", group="model")
    num_layers: int = _setting(4, "Transformer blocks", group="model")
    num_heads: int = _setting(4, "attention heads", group="model")
    d_ff: int = _setting(352, "width inside the feed-forward network", group="model")
    dropout: float = _setting(0.0, "share of activations dropped", group="model")
    position: Literal["rope", "learned", "none"] = _setting("rope", "positions", group="model")
    ffn: Literal["swiglu", "gelu"] = _setting("swiglu", "feed-forward network", group="model")
    norm: Literal["rmsnorm", "layernorm"] = _setting("rmsnorm", "normalisation", group="model")
    tie_embeddings: bool = _setting(False, "one matrix for input and output", group="model")
    eval_interval: int = _setting(250, "steps between evaluations", group="run")
    eval_batches: int = _setting(20, "batches of an evaluation; 0: the whole split", group="run")
    log_interval: int = _setting(1, "steps between rows of metrics", group="run")
    seed: int = _setting(1337, "seed of weights, batches and dropout", group="training")
    precision: Literal["auto", "fp32", "bf16"] = _setting(
        "auto", "auto is bf16 where the hardware has it", group="hardware"
    )
    device: str = _setting("auto", "auto, cpu, cuda, cuda:1, mps", group="hardware")
    compile: bool = _setting(False, "use torch.compile", group="hardware")
    early_stopping_patience: int = _setting(
        0, "evaluations without a better val/loss before stopping; 0: off", group="training"
    )

    def __post_init__(self) -> None:
        for item in fields(self):
            _check_type(item.name, getattr(self, item.name), _TYPES[item.name])
        positive = "max_steps max_checkpoints batch_size context_length d_model num_layers"
        for name in (*positive.split(), *"num_heads d_ff eval_interval log_interval".split()):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        for name in "warmup_steps eval_batches early_stopping_patience".split():
            _require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        _require(0 <= self.seed < 2**63, "seed", self.seed, "at least 0 and below 2**63")
        for name in "learning_rate min_learning_rate weight_decay grad_clip".split():
            value = getattr(self, name)
            _require(0 <= value < float("inf"), name, value, "a finite number of 0 or more")
        _require(0 <= self.dropout < 1, "dropout", self.dropout, "at least 0 and below 1")
        if self.d_model % self.num_heads:
            raise ValueError(
                f"--d-model must be a multiple of --num-heads {self.num_heads}, got {self.d_model}"
            )
        if self.position == "rope" and self.d_model // self.num_heads % 2:
            raise ValueError(
                f"--d-model must be an even multiple of --num-heads {self.num_heads} with "
                f"--position rope, which turns pairs, got {self.d_model}"
            )
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(
                f"--min-learning-rate must be at most --learning-rate {self.learning_rate}, got "
                f"{self.min_learning_rate}"
            )

    def params(self) -> dict[str, Any]:
        """The params to record: the settings that shape the run, not its place or resume."""
        skip = ("experiment", "run_name", "resume", "config")
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in skip}


_TYPES = typing.get_type_hints(Config)


def parse(arguments: Sequence[str]) -> tuple[Config, dict[str, str]]:
    """Settings from the command line and the `--config` file.

    Args:
        arguments: `sys.argv[1:]`. Every flag takes a value.

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
        values[name] = _convert(f"--{name.replace('_', '-')}", text, _TYPES[name])
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
            near = difflib.get_close_matches(unknown[0].split("=")[0], flags, 1)
            hint = f"; did you mean {near[0]}?" if near else "; --help lists the flags"
            raise ValueError(f"unknown flag {unknown[0]!r}{hint}")
        return known


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
        kind = _TYPES[item.name]
        choices = typing.get_args(kind) if typing.get_origin(kind) is Literal else ()
        group.add_argument(
            f"--{item.name.replace('_', '-')}",
            action=_Once,
            metavar="{" + ",".join(choices) + "}" if choices else _word(kind).upper(),
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
        if name not in _TYPES:
            near = difflib.get_close_matches(name, _TYPES, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"--config {path} has the unknown setting {name!r}{hint}")
        if isinstance(value, float) and _TYPES[name] is int and value.is_integer():
            content[name] = int(value)
        elif isinstance(value, int) and _TYPES[name] is float and not isinstance(value, bool):
            content[name] = float(value)
    return content


def _convert(flag: str, text: str, kind: Any) -> Any:
    """The value that `text` stands for. An empty text is an unset string."""
    if kind is bool:
        if text.lower() in (*_TRUE, *_FALSE):
            return text.lower() in _TRUE
    elif typing.get_origin(kind) is Literal:
        if text in typing.get_args(kind):
            return text
    elif kind in (int, float):
        try:
            number = float(text)
            if kind is float:
                return number
            return int(text) if text.lstrip("+-").isdigit() else _integral(number)
        except (ValueError, OverflowError):
            pass
    else:
        return text or None if kind == str | None else text
    raise ValueError(f"{flag} must be {_wanted(kind)}, got {text!r}")


def _integral(number: float) -> int:
    if not number.is_integer():
        raise ValueError
    return int(number)


def _check_type(name: str, value: Any, kind: Any) -> None:
    if typing.get_origin(kind) is Literal:
        is_valid = value in typing.get_args(kind)
    elif kind is float:
        is_valid = isinstance(value, float | int) and not isinstance(value, bool)
    elif kind is int:
        is_valid = isinstance(value, int) and not isinstance(value, bool)
    else:
        is_valid = isinstance(value, kind)
    _require(is_valid, name, value, _wanted(kind))


def _require(is_valid: bool, name: str, value: Any, wanted: str) -> None:
    if not is_valid:
        raise ValueError(f"--{name.replace('_', '-')} must be {wanted}, got {value!r}")


def _wanted(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return " or ".join(typing.get_args(kind))
    words = {int: "an integer (1e3 is one)", float: "a number", bool: "true or false (or 1, 0)"}
    return words.get(kind, "a string")


def _word(kind: Any) -> str:
    return {int: "int", float: "number", bool: "true|false"}.get(kind, "text")


def _show(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
