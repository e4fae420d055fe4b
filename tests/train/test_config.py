"""Do the flags, the config file and the defaults become one checked Config?"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.config import Config
from train.flags import parse
from train.loop import describe


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr with which a command line is refused, with status 2."""
    with pytest.raises(SystemExit) as ended:
        parse(arguments)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_every_field_has_a_flag_and_every_flag_a_field(capsys):
    with pytest.raises(SystemExit) as ended:
        parse(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for item in dataclasses.fields(Config):
        assert f"--{item.name.replace('_', '-')} " in text


def test_without_flags_the_defaults_hold_and_nothing_differs():
    assert parse([]) == (Config(), {})


@pytest.mark.parametrize(
    ("word", "value"), [("1000", 1000), ("1e3", 1000), ("1000.0", 1000), ("+7", 7)]
)
def test_integers_accept_integral_floats(word, value):
    config, _ = parse(["--max-steps", word])
    assert config.max_steps == value
    assert type(config.max_steps) is int


@given(st.integers(min_value=1, max_value=2**62))
def test_an_integer_arrives_digit_for_digit(number):
    config, _ = parse(["--seed", str(number)])
    assert config.seed == number


@pytest.mark.parametrize(
    ("flag", "hint"),
    [
        ("--lr", "did you mean --learning-rate?"),
        ("--bs=4", "did you mean --batch-size?"),
        ("--max_step", "did you mean --max-steps?"),
        ("--vocabulary", "--help lists the flags"),
        ("--max-steps=1e99", f"must be at most 2**53, got {int(1e99)}"),
    ],
)
def test_a_wrong_flag_says_what_is_meant(flag, hint, capsys):
    assert refusal([flag], capsys).endswith(hint)


@pytest.mark.parametrize("word", ["true", "True", "1"])
def test_words_for_true(word):
    assert parse(["--compile", word])[0].compile is True


def test_a_flag_of_true_or_false_alone_is_true():
    config, _ = parse(["--compile", "--max-steps", "5", "--plan"])
    assert (config.compile, config.max_steps, config.plan) == (True, 5, True)


def test_an_empty_number_is_none():
    assert parse(["--save-on-improvement", ""])[0].save_on_improvement is None
    assert parse(["--save-on-improvement", "0"])[0].save_on_improvement == 0


@pytest.mark.parametrize("word", ["false", "FALSE", "0"])
def test_words_for_false(word):
    assert parse(["--tie-embeddings", word])[0].tie_embeddings is False


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--max-steps", "10.5"], ("--max-steps", "'10.5'", "integer")),
        (["--max-steps", "ten"], ("--max-steps", "'ten'", "integer")),
        (["--max-steps", "inf"], ("--max-steps", "'inf'", "integer")),
        (["--max-steps", "0"], ("--max-steps", "0", "1 or more")),
        (["--learning-rate", "fast"], ("--learning-rate", "'fast'", "number")),
        (["--learning-rate", "nan"], ("--learning-rate", "nan", "finite")),
        (["--learning-rate=-1"], ("--learning-rate", "-1", "0 or more")),
        (["--compile", "maybe"], ("--compile", "'maybe'", "true or false")),
        (["--position", "relative"], ("--position", "'relative'", "rope or learned or none")),
        (["--dropout", "1"], ("--dropout", "1.0", "below 1")),
        (["--max-step", "3"], ("--max-step", "--max-steps")),
        (["--bogus"], ("--bogus", "--help")),
        (["--seed", "1", "--seed=2"], ("--seed", "twice", "'1'", "-P seed=2")),
        (["stray"], ("stray",)),
        (["--max-steps"], ("--max-steps", "expected one argument")),
        (["--d-model", "30"], ("--d-model", "30", "--num-heads", "multiple")),
        (["--d-model", "12"], ("--d-model", "12", "even")),
        (["--min-learning-rate", "0.01"], ("--min-learning-rate", "0.01", "--learning-rate 0.003")),
        (["--num-layers", "1e5"], ("--num-layers", "100000", "at most 10000")),
        (["--max-checkpoints", "1e7"], ("--max-checkpoints", "at most 1000000")),
        (["--keep-max-bytes", "10XB"], ("--keep-max-bytes", "'10XB'", "1e9", "10GiB")),
        (["--seed", str(2**64)], ("--seed", str(2**64), "below 2**63")),
        (["--config", "missing.json"], ("--config", "missing.json")),
        (["--save-on-improvement", "much"], ("--save-on-improvement", "'much'", "a number")),
        (["--save-on-improvement=-1"], ("--save-on-improvement", "-1", "0 or more")),
        (["--save-every-minutes", "nan"], ("--save-every-minutes", "nan", "finite")),
        (["--save-budget", "1"], ("--save-budget", "1.0", "below 1")),
        (["--save-at-steps", "5,x"], ("--save-at-steps", "'5,x'", "integers")),
        (["--save-at-steps", "5,1000"], ("--save-at-steps", "'5,1000'", "below --max-steps 1000")),
        (["--keep-last", "-1"], ("--keep-last", "-1", "0 or more")),
        (["--plan", "maybe"], ("--plan", "'maybe'", "true or false")),
        (
            ["--save-improvement-relative"],
            ("--save-improvement-relative", "together with --save-on-improvement"),
        ),
        (
            ["--save-improvement-noise", "2"],
            ("--save-improvement-noise", "together with --save-on-improvement"),
        ),
        (
            ["--mean-time-between-failures", "9"],
            ("--mean-time-between-failures", "together with --save-budget"),
        ),
        (
            ["--early-stopping-min-delta", "0.1"],
            ("--early-stopping-min-delta", "together with --early-stopping-patience"),
        ),
        (
            ["--save-budget", "0.1", "--keep-best", "1"],
            ("--keep-best", "cannot be combined with --save-budget"),
        ),
        (
            ["--save-continuously", "--keep-best", "1"],
            ("--keep-best", "cannot be combined with --save-continuously"),
        ),
        (["--plan", "--resume", "auto"], ("--plan cannot be combined with --resume",)),
        (["--save-continuously"], ("--save-continuously", "--keep-last", "fill the disk")),
        (["--save-budget", "0.1"], ("--save-budget", "--keep-last", "fill the disk")),
    ],
)
def test_what_does_not_fit_ends_with_one_line_that_names_it(arguments, parts, capsys):
    line = refusal(arguments, capsys)
    for part in parts:
        assert part in line, line


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("[1]", "object"),
        ("{", "not JSON"),
        ('{"max_step": 3}', "'max_steps'"),
        ('{"max_steps": "3"}', "--max-steps"),
        ('{"compile": 1}', "--compile"),
        ('{"save_on_improvement": "x"}', "--save-on-improvement"),
        ('{"save_at_steps": 5}', "--save-at-steps"),
        ('{"max_steps": 2.5}', "--max-steps"),
        ('{"keep_max_bytes": "much"}', "keep_max_bytes must be a number of bytes, like 500000"),
    ],
)
def test_a_wrong_config_file_is_named(content, part, tmp_path: Path, capsys):
    (tmp_path / "c.json").write_text(content)
    assert part in refusal(["--config", str(tmp_path / "c.json")], capsys)


@pytest.mark.parametrize(("peak", "last"), [(3e-3, 1e-4), (3e-5, 1e-6), (0.0, 0.0)])
def test_the_last_learning_rate_follows_the_peak_unless_it_is_given(peak, last):
    config, sources = parse(["--learning-rate", str(peak)])
    assert config.min_learning_rate == pytest.approx(last)
    assert config.params()["min_learning_rate"] == config.min_learning_rate
    assert "min_learning_rate" not in sources
    assert Config().min_learning_rate == 1e-4
    assert parse(["--min-learning-rate", "1e-3"])[0].min_learning_rate == 1e-3


def test_sizes_have_units(tmp_path: Path):
    (tmp_path / "c.json").write_text('{"keep_max_bytes": "1.5 kB"}')
    assert parse(["--keep-max-bytes", "10GB"])[0].keep_max_bytes == 10**10
    assert parse(["--config", str(tmp_path / "c.json")])[0].keep_max_bytes == 1500


def test_flags_beat_the_file_and_both_are_told(tmp_path: Path):
    file = tmp_path / "c.json"
    file.write_text(json.dumps({"max_steps": 1e3, "seed": 5, "dropout": 0, "batch_size": 6}))
    config, sources = parse(["--config", str(file), "--seed", "7"])
    assert (config.max_steps, config.seed, config.dropout, config.batch_size) == (1000, 7, 0.0, 6)
    text = describe(sources, config)
    assert f"batch_size=6 (config file {file})" in text
    assert "seed=7 (command line)" in text
    assert "max_steps" not in text  # it has the value of the default


def test_a_config_written_by_hand_is_checked_too():
    with pytest.raises(ValueError, match="--norm must be rmsnorm or layernorm, got 'batch'"):
        Config(norm="batch")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"--max-steps must be an integer .*, got True"):
        Config(max_steps=True)
