"""Reads all of a server's answer: MLflow's client drops what a busy server says, and how long."""

from __future__ import annotations

import time
import urllib.parse
from typing import Any, NamedTuple

import requests
from mlflow.utils import rest_utils

from mlflow_track.backends.mlflow.reach import seconds_of

# An answer that comes slower than this for longer than a time-out is none.
_SLOWEST_BYTES_PER_SECOND = 1000
_PIECE_BYTES = 64 << 10


class Answer(NamedTuple):
    """The answer to the newest request of this process.

    Attributes:
        url: What was asked.
        retry_after: Seconds for which the server asked not to be called; 0 where it did not.
    """

    url: str = ""
    retry_after: float = 0.0

    @property
    def host(self) -> str:
        return urllib.parse.urlsplit(self.url).netloc.rpartition("@")[2]


_last = Answer()


def last_answer() -> Answer:
    return _last


def _note(answer: Answer) -> None:
    global _last
    _last = answer


def listen() -> None:
    """Let MLflow's client return the answers that it would raise an error for without their text.

    It uses an internal function for that; a version without it keeps its own error messages.
    """
    ask = getattr(rest_utils, "_get_http_response_with_retries", None)
    if ask is None or getattr(ask, "is_ours", False):
        return

    def whole(method: str, url: str, *arguments: Any, **options: Any) -> requests.Response:
        _note(Answer(url))
        if len(arguments) > 4:
            arguments = (*arguments[:4], False, *arguments[5:])
        else:
            options["raise_on_status"] = False
        if options.get("stream"):
            response = ask(method, url, *arguments, **options)
        else:
            response = ask(method, url, *arguments, **{**options, "stream": True})
            _read(response, float(options.get("timeout") or 0))
        _note(Answer(url, seconds_of(response.headers.get("Retry-After"))))
        return response

    whole.is_ours = True  # type: ignore[attr-defined]
    rest_utils._get_http_response_with_retries = whole


def _read(response: requests.Response, timeout_seconds: float) -> None:
    """Read the text of an answer; one that keeps dripping ends in a timeout."""
    read = getattr(response.raw, "read1", None)
    if read is None:
        # An older HTTP client has no means to look at what has come so far.
        response.content  # noqa: B018
        return
    began = time.monotonic()
    pieces: list[bytes] = []
    size = 0
    while piece := read(_PIECE_BYTES, decode_content=True):
        pieces.append(piece)
        size += len(piece)
        took = time.monotonic() - began
        if took > timeout_seconds and size < took * _SLOWEST_BYTES_PER_SECOND:
            response.close()
            raise requests.exceptions.ReadTimeout("Read timed out: the answer drips")
    response._content = b"".join(pieces)
    response._content_consumed = True  # type: ignore[attr-defined]
