"""Settings that are too large for the memory end with one line that names them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import mlflow_track as mt
from train import __main__ as job
from train.config import Config
from train.memory import shortage


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--batch-size", "1e12"),
        ("--d-model", "1e9"),
        ("--d-ff", "1e14"),
    ],
)
def test_main_names_a_flag_that_no_memory_is_enough_for(flag, value, capsys):
    assert job.main([flag, value]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "must be at most the" in line
    assert f"{flag} {int(float(value))}" in line
    assert not Path("runs").exists()


@pytest.mark.parametrize("allocate", [np.empty, torch.empty])
def test_main_says_in_one_line_that_the_memory_ended(allocate, capsys, monkeypatch):
    monkeypatch.setattr(job, "train", lambda *_: allocate(1 << 52))
    arguments = ["--d-model", "4", "--d-ff", "4", "--num-layers", "1", "--num-heads", "1"]
    assert job.main(arguments) == 1
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("train: out of memory: ")
    assert "--batch-size 16" in line
    assert mt.load_runs()[0].status == "FAILED"


def test_shortage_leaves_other_errors_as_they_are():
    assert shortage(RuntimeError("mat1 and mat2 shapes cannot be multiplied"), Config()) is None
