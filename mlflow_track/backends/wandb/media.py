"""Images, texts and histograms of steps as W&B shows them."""

from __future__ import annotations

import json
from typing import Any

import numpy
import wandb

from mlflow_track.backends.protocol import MediaItem
from mlflow_track.record.files import read_file

_MOST_BYTES = 256 << 20


def media_of(item: MediaItem) -> Any:
    """An item as the client takes it.

    Raises:
        FileNotFoundError: Its file is gone.
        ValueError: Its file is damaged, or W&B does not take it.
    """
    try:
        return _media_of(item)
    except FileNotFoundError:
        raise
    except (OSError, KeyError, TypeError, wandb.Error) as error:
        raise ValueError(str(error) or repr(error)) from error


def _media_of(item: MediaItem) -> Any:
    content = read_file(item.path, _MOST_BYTES)
    if item.kind == "image":
        return wandb.Image(str(item.path))
    if item.kind == "text":
        return wandb.Table(
            columns=["step", "text"], data=[[item.step, content.decode("utf-8", "replace")]]
        )
    found = json.loads(content)
    counts, edges = numpy.asarray(found["counts"]), numpy.asarray(found["edges"])
    return wandb.Histogram(np_histogram=(counts, edges))
