"""Translates MLflow's errors into those of a backend."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from mlflow.exceptions import MlflowException

from mlflow_track.backends.protocol import Gone, Refused, Unavailable
from mlflow_track.record.masking import mask_password

_FOR_GOOD = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_ALREADY_EXISTS")
_ACCESS = ("UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED", "PERMISSION_DENIED")
_ACCESS_HINT = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
# How MLflow's client words a reply that is not MLflow's own JSON: a proxy's page, an empty body.
_STATUS = re.compile(r"failed with error code (\d{3})|too many (\d{3}) error responses")
_TRANSPORT = "API request to"
# Without the user and password that it may carry.
_HOST = re.compile(r"https?://(?:[^/@\s]*@)?([^/\s]+)")
_CAUSES = (
    re.compile(r"\[Errno -?\d+\] [\w ,]+"),
    re.compile(r"(Read|Connect)?[ ]?timed out"),
    re.compile(r"Connection aborted|Remote end closed connection|Connection broken"),
)
_OF_DATABASE = re.compile(r"\([\w.]+Error\) ")
_MOST_TEXT = 300


@contextlib.contextmanager
def translated(missing: type[Exception] = Unavailable) -> Iterator[None]:
    """Errors of MLflow as those of a backend; unknown ones count as an outage."""
    try:
        yield
    except (Unavailable, Gone, Refused, FileNotFoundError):
        raise
    except MlflowException as error:
        raise _of_mlflow(error, missing) from error
    except ModuleNotFoundError as error:
        raise Unavailable(
            f"driver {error.name} is not installed (pip install {error.name})"
        ) from error
    except Exception as error:
        text = f"{type(error).__name__}: {_short(error)}"
        raise _of_status(_status_of(error), text) from error


def _of_mlflow(error: MlflowException, missing: type[Exception]) -> Exception:
    text = _short(error)
    if text.startswith(_TRANSPORT):
        # Not the word of an MLflow server, whatever code the client made of it.
        found = _STATUS.search(str(error))
        status = int(found[1] or found[2]) if found else None
        return _of_status(status, _of_transport(str(error), status))
    if error.error_code == "RESOURCE_DOES_NOT_EXIST":
        return missing(text)
    if error.error_code in _ACCESS:
        return _no_access(text)
    if error.error_code in _FOR_GOOD:
        return Refused(text)
    return Unavailable(text, is_answer=True)


def _of_transport(text: str, status: int | None) -> str:
    """The one thing that matters of the chain of causes that the HTTP client tells."""
    host = _HOST.search(text)
    cause = f"it answers {status}" if status else ""
    for pattern in _CAUSES:
        if not cause and (found := pattern.search(text)):
            cause = found[0]
    return f"{host[1] if host else 'the server'}: {cause or mask_password(text)[:_MOST_TEXT]}"


def _status_of(error: Exception) -> object:
    """The HTTP status that an artifact store answered with: requests' errors, and boto's."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return getattr(response, "status_code", None)


def _of_status(status: object, text: str) -> Unavailable:
    if status in (401, 403):
        return _no_access(text)
    return Unavailable(text, is_answer=isinstance(status, int))


def _no_access(text: str) -> Unavailable:
    return Unavailable(f"the server refuses access ({text}); {_ACCESS_HINT}", is_answer=True)


def _short(error: Exception) -> str:
    """A short message of an error, without the password that its URI may contain."""
    lines = str(error).splitlines() or [""]
    # SQLAlchemy puts the message of the database into a later line.
    line = next((line for line in lines if _OF_DATABASE.match(line)), lines[0])
    return mask_password(line).strip()[:_MOST_TEXT]
