"""How a run ended: its status, and what went wrong in one line."""

from __future__ import annotations

from mlflow_track.record.files import legible
from mlflow_track.record.masking import mask_password
from mlflow_track.record.statuses import FAILED, FINISHED, KILLED

_MOST_CHARACTERS = 1000


def ending_of(error: BaseException | None, stop_reason: str | None) -> tuple[str, str | None]:
    """The status of a run that `error` ended, or that was asked to stop, and why; else FINISHED."""
    if isinstance(error, KeyboardInterrupt):
        return KILLED, "interrupted"
    if error is not None and not (isinstance(error, SystemExit) and not error.code):
        return FAILED, one_line(error)
    if stop_reason is not None:
        return KILLED, f"stopped: {stop_reason}"
    return FINISHED, None


def one_line(error: BaseException) -> str:
    """What a traceback ends with. Of a message too long for a tag the middle is left out."""
    try:
        message = str(error)
    except Exception:
        message = "(its message cannot be read)"
    text = " ".join(f"{type(error).__name__}: {message}".split())
    # Passwords go before a cut can take away what tells them from other words; and half characters
    # (of a file's name in another encoding) cannot be written.
    text = legible(mask_password(text))
    if len(text) <= _MOST_CHARACTERS:
        return text
    half = _MOST_CHARACTERS // 2 - 2
    return f"{text[:half]} … {text[-half:]}"
