"""The settings of the job: one frozen dataclass, checked as a whole."""

from __future__ import annotations

import typing
from dataclasses import dataclass, field, fields
from typing import Any, Literal

# The place of a run and what one attempt is asked for: no params of the run.
_NO_PARAMS = ("experiment", "run_name", "resume", "config", "plan", "deadline")


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
    plan: bool = _setting(False, "print the plan of the saves and train nothing", group="run")
    deadline: str | None = _setting(
        None, "when the machine goes away: save and stop in time (90m, an ISO time)", group="run"
    )
    data: str | None = _setting(
        None,
        "text, or tokens (.npy, .npz, .bin of uint16 or llm.c's); Python's help texts",
        group="data",
    )
    max_steps: int = _setting(1000, "optimizer steps of the whole run", group="training")
    warmup_steps: int = _setting(100, "steps of linear warm-up", group="training")
    learning_rate: float = _setting(3e-3, "peak learning rate", group="training")
    min_learning_rate: float = _setting(
        None, "learning rate at the last step; a 30th of the peak by default", group="training"
    )
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
    sample_tokens: int = _setting(64, "tokens of an evaluation's sample; 0: none", group="run")
    log_interval: int = _setting(1, "steps between rows of metrics", group="run")
    seed: int = _setting(1337, "seed of weights, batches and dropout", group="training")
    precision: Literal["auto", "fp32", "bf16"] = _setting(
        "auto", "auto is bf16 where the hardware has it", group="hardware"
    )
    device: str = _setting("auto", "auto, cpu, cuda, cuda:1, mps", group="hardware")
    compile: bool = _setting(False, "use torch.compile", group="hardware")
    max_checkpoints: int = _setting(
        5, "steps to save, evenly spaced from the end of warm-up; 0: none", group="when to save"
    )
    save_every_steps: int = _setting(0, "steps between saves; 0: off", group="when to save")
    save_every_minutes: float = _setting(0.0, "age of the last save; 0: off", group="when to save")
    save_at_steps: str | None = _setting(
        None, "these steps, with commas: 10,100,1000", group="when to save"
    )
    save_on_improvement: float | None = _setting(
        None, "gain in val/loss over the saved steps that is worth a save", group="when to save"
    )
    save_improvement_relative: bool = _setting(
        False, "that gain is a share of the best value", group="when to save"
    )
    save_improvement_noise: float = _setting(
        0.0, "standard deviations of noise that it must exceed as well", group="when to save"
    )
    save_budget: float = _setting(
        0.0, "share of the time that saves may cost; 0: off", group="when to save"
    )
    mean_time_between_failures: float = _setting(
        0.0,
        "seconds, for --save-budget: a limit to what pays; 0: none",
        group="when to save",
    )
    save_continuously: bool = _setting(
        False, "save again as soon as the last save is on disk", group="when to save"
    )
    keep_last: int = _setting(
        0, "newest checkpoints to keep; 0: all, or 1 with another --keep flag", group="what to keep"
    )
    keep_best: int = _setting(
        0,
        "checkpoints of the lowest val/loss to keep; each save evaluates",
        group="what to keep",
    )
    keep_milestones: bool = _setting(
        True, "keep the evenly spaced and the given steps", group="what to keep"
    )
    keep_max_bytes: int = _setting(
        0, "most bytes that checkpoints may take, like 10GB; 0: no limit", group="what to keep"
    )
    early_stopping_patience: int = _setting(
        0, "evaluations without a better val/loss before stopping; 0: off", group="when to stop"
    )
    early_stopping_min_delta: float = _setting(
        0.0, "smallest gain in val/loss that counts as better", group="when to stop"
    )

    def __post_init__(self) -> None:
        if self.min_learning_rate is None and isinstance(self.learning_rate, int | float):
            object.__setattr__(self, "min_learning_rate", self.learning_rate / 30)
        for item in fields(self):
            _check_type(item.name, getattr(self, item.name), TYPES[item.name])
        positive = "max_steps batch_size context_length d_model num_layers num_heads d_ff"
        for name in (*positive.split(), *"eval_interval log_interval".split()):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        _require(self.max_steps <= 2**53, "max_steps", self.max_steps, "at most 2**53")
        # A block costs a millisecond before the first step, and a planned save 100 bytes.
        for name, most in (("num_layers", 10_000), ("max_checkpoints", 1_000_000)):
            _require(getattr(self, name) <= most, name, getattr(self, name), f"at most {most}")
        counts = (
            "warmup_steps eval_batches sample_tokens max_checkpoints save_every_steps keep_last"
        )
        for name in (*counts.split(), *"keep_best keep_max_bytes early_stopping_patience".split()):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        _require(0 <= self.seed < 2**63, "seed", self.seed, "at least 0 and below 2**63")
        numbers = "learning_rate min_learning_rate weight_decay grad_clip save_every_minutes"
        policies = "save_on_improvement save_improvement_noise mean_time_between_failures"
        for name in (*numbers.split(), *policies.split(), "early_stopping_min_delta"):
            value = getattr(self, name)
            is_valid = value is None or 0 <= value < float("inf")
            _require(is_valid, name, value, "a finite number of 0 or more")
        _require(
            0 <= self.save_budget < 1, "save_budget", self.save_budget, "at least 0 and below 1"
        )
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

        self._check_policies()

    def _check_policies(self) -> None:
        """Settings that make no sense without, or with, another one."""
        if self.plan and self.resume not in (None, "never"):
            raise ValueError(
                "--plan cannot be combined with --resume: it plans a run from its first step"
            )
        for step in self.steps_to_save:
            name, wanted = "save_at_steps", f"below --max-steps {self.max_steps}"
            _require(step < self.max_steps, name, self.save_at_steps, wanted)
        is_on_improvement = self.save_on_improvement is not None
        for name, other, is_there in (
            ("save_improvement_relative", "save_on_improvement", is_on_improvement),
            ("save_improvement_noise", "save_on_improvement", is_on_improvement),
            ("mean_time_between_failures", "save_budget", self.save_budget > 0),
            ("early_stopping_min_delta", "early_stopping_patience", self.early_stopping_patience),
        ):
            if getattr(self, name) and not is_there:
                raise ValueError(f"{_flag(name)} must be given together with {_flag(other)}")
        for name in ("save_continuously", "save_budget"):
            if self.keep_best and getattr(self, name):
                raise ValueError(
                    f"--keep-best cannot be combined with {_flag(name)}, because each save would "
                    "need an evaluation; save at steps or on improvement instead"
                )
            if getattr(self, name) and not (self.keep_last or self.keep_max_bytes):
                raise ValueError(
                    f"{_flag(name)} must be given together with --keep-last or --keep-max-bytes: "
                    "all of its checkpoints would fill the disk"
                )

    @property
    def steps_to_save(self) -> list[int]:
        """The steps of `save_at_steps`.

        Raises:
            ValueError: It is not a list of integers.
        """
        given = (self.save_at_steps or "").split(",")
        steps = [text.strip() for text in given if text.strip()]
        is_valid = all(text.isdecimal() for text in steps)
        wanted = "integers of 0 or more with commas between them"
        _require(is_valid, "save_at_steps", self.save_at_steps, wanted)
        return [int(text) for text in steps]

    def params(self) -> dict[str, Any]:
        """The params to record: the settings that shape the run, not its place or resume."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _NO_PARAMS}


TYPES = typing.get_type_hints(Config)


def _check_type(name: str, value: Any, kind: Any) -> None:
    if typing.get_origin(kind) is Literal:
        is_valid = value in typing.get_args(kind)
    elif kind in (float, float | None):
        is_number = isinstance(value, float | int) and not isinstance(value, bool)
        is_valid = is_number or (value is None and kind is not float)
    elif kind is int:
        is_valid = isinstance(value, int) and not isinstance(value, bool)
    else:
        is_valid = isinstance(value, kind)
    _require(is_valid, name, value, wanted(kind))


def _require(is_valid: bool, name: str, value: Any, wanted: str) -> None:
    if not is_valid:
        raise ValueError(f"{_flag(name)} must be {wanted}, got {value!r}")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def wanted(kind: Any) -> str:
    """What a value of a setting must be."""
    if typing.get_origin(kind) is Literal:
        return " or ".join(typing.get_args(kind))
    words = {int: "an integer (1e3 is one)", bool: "true or false (or 1, 0)"}
    return words.get(kind, "a number" if kind in (float, float | None) else "a string")
