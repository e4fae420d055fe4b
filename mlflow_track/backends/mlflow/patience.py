"""Sets how long and how often MLflow's client tries: it reads its variables at each call."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

# An upload may take as long as a slow line needs, beside the usual patience.
_SLOWEST_BYTES_PER_SECOND = 2_000_000


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """MLflow reads its variables at each call; no other thread of this process does."""
    previous = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if previous is None:
            del os.environ[name]
        else:
            os.environ[name] = previous


def without_retries() -> contextlib.AbstractContextManager[None]:
    return _environment("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


def patient(size_bytes: int) -> contextlib.AbstractContextManager[None]:
    seconds = float(os.environ.get("MLFLOW_HTTP_REQUEST_TIMEOUT") or 10)
    seconds += size_bytes / _SLOWEST_BYTES_PER_SECOND
    return _environment("MLFLOW_HTTP_REQUEST_TIMEOUT", str(int(seconds)))
