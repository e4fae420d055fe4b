"""Translates MLflow's errors into those of a backend."""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Iterator

from mlflow.exceptions import MlflowException

from mlflow_track.backends.mlflow.answers import last_answer
from mlflow_track.backends.mlflow.reach import proxy_of, readable, told_of_status
from mlflow_track.backends.protocol import Gone, Refused, Unavailable
from mlflow_track.record.masking import mask_password

_FOR_GOOD = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_ALREADY_EXISTS")
_ACCESS = ("UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED", "PERMISSION_DENIED")
_ACCESS_HINT = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
# How MLflow's client words a reply that is not MLflow's own JSON: a proxy's page, an empty body.
_STATUS = re.compile(r"failed with error code (\d{3})|too many (\d{3}) error responses")
_BODY = re.compile(r"Response (?:body|text): (.*)", re.DOTALL)
_TRANSPORT = "API request to"
# Without the user and password that it may carry.
_HOST = re.compile(r"https?://(?:[^/@\s]*@)?([^/\s]+)")
_CAUSES = (
    re.compile(r"\[Errno -?\d+\] [\w ,]+"),
    re.compile(r"(Read|Connect)?[ ]?timed out"),
    re.compile(r"Tunnel connection failed: \d{3}[\w ]*"),
    re.compile(r"Connection aborted|Remote end closed connection|Connection broken"),
)
_OF_DATABASE = re.compile(r"\((sqlite3|psycopg2?|pymysql|MySQLdb|pyodbc)\.[\w.]*?(\w+)\) ")
# Errors of a database that are about a value; others are about the database.
_OF_VALUE = re.compile("Data|Integrity|Truncat|OutOfRange|Overflow|Character|Violation|Invalid")
_SCHEMA = re.compile(
    r"no such (table|column)|has no column|Undefined(Table|Column)|Unknown column|"
    r"Table '.*' doesn't exist|cached plan must not change"
)
# A file of an artifact folder that this process writes to itself: not now, and never.
_NOT_NOW = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO)
_NEVER = (errno.ENAMETOOLONG, errno.EILSEQ, errno.EFBIG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)
# An HTTP status that says no for this very request; one that may pass is not here.
_MAY_PASS = (401, 403, 407, 408, 425, 429)


class RefusedByStatus(Refused):
    """Refused by an HTTP status: the text may be that of a gateway and not of MLflow."""


class SchemaTrouble(Unavailable):
    """A table is missing, or not as MLflow has it, as in the middle of a migration."""


@contextlib.contextmanager
def translated(missing: type[Exception] = Unavailable, *, is_item: bool = False) -> Iterator[None]:
    """Errors of MLflow as those of a backend; unknown ones count as an outage.

    Args:
        missing: Raised where the server does not have what is asked for.
        is_item: Whether one item is sent, so that it may be refused for good; else a refusal is an
            normal answer.
    """
    try:
        yield
    except (Unavailable, Gone, FileNotFoundError):
        raise
    except Refused as error:
        if is_item:
            raise
        raise Unavailable(str(error), is_answer=True) from error
    except Exception as error:
        told = _told(error, missing)
        if isinstance(told, Refused) and not is_item:
            told = Unavailable(str(told), is_answer=True)
        raise told from error


def _told(error: Exception, missing: type[Exception]) -> Exception:
    if isinstance(error, MlflowException):
        return _of_mlflow(error, missing)
    if isinstance(error, ModuleNotFoundError):
        return Unavailable(
            f"driver {error.name} is not installed (pip install {error.name})", is_final=True
        )
    text = f"{type(error).__name__}: {_short(error)}"
    if isinstance(error, OSError) and error.errno in _NEVER:
        return Refused(text)
    if isinstance(error, OSError) and error.errno in _NOT_NOW:
        return Unavailable(text, is_answer=True)
    return _of_status(_status_of(error), text)


def _of_mlflow(error: MlflowException, missing: type[Exception]) -> Exception:
    text = _short(error)
    if text.startswith(_TRANSPORT):
        # Not the word of an MLflow server, whatever code the client made of it.
        found = _STATUS.search(str(error))
        status = int(found[1] or found[2]) if found else None
        return _of_status(status, _of_transport(str(error), status))
    if error.error_code == "RESOURCE_DOES_NOT_EXIST":
        return missing(text)
    of_database = _OF_DATABASE.search(text)
    if of_database and _SCHEMA.search(text):
        return SchemaTrouble(text, is_answer=True)
    if error.error_code in _ACCESS:
        return _no_access(text)
    if of_database and not _OF_VALUE.search(of_database[2]):
        return Unavailable(text, is_answer=True)
    if error.error_code in _FOR_GOOD:
        return Refused(text)
    return Unavailable(text, is_answer=True, retry_after=last_answer().retry_after)


def _of_transport(text: str, status: int | None) -> str:
    """What matters of the causes that the HTTP client tells, and all that a server says."""
    host = _HOST.search(text)
    named = host[1] if host else last_answer().host or "the server"
    via = proxy_of(last_answer().url)
    if status:
        body = _BODY.search(text)
        return told_of_status(named, status, body[1].strip("'\"") if body else "", via)
    cause = ""
    for pattern in _CAUSES:
        if not cause and (found := pattern.search(text)):
            cause = found[0]
    through = f" through the proxy {via}" if via else ""
    if "ProxyError" in text or "Tunnel connection failed" in text:
        return f"{named}{through}: the proxy does not pass it on: {cause or _whole(text)}"
    return f"{named}{through}: {cause or _whole(text)}"


def _status_of(error: Exception) -> object:
    """The HTTP status that an artifact store answered with: requests' errors, and boto's."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return getattr(response, "status_code", None)


def _of_status(status: object, text: str) -> Exception:
    if not isinstance(status, int):
        return Unavailable(text)
    if status in (401, 403):
        return _no_access(text)
    if 400 <= status < 500 and status not in _MAY_PASS:
        return RefusedByStatus(text)
    # One client that calls too often: nothing else that it asks for is answered either.
    return Unavailable(text, is_answer=status != 429, retry_after=last_answer().retry_after)


def _no_access(text: str) -> Unavailable:
    return Unavailable(f"the server refuses access ({text}); {_ACCESS_HINT}", is_answer=True)


def _whole(text: str) -> str:
    return readable(mask_password(text))


def _short(error: Exception) -> str:
    """The message of an error, without the password that its URI may contain."""
    text = str(error)
    # SQLAlchemy puts the message of the database into a later line, and the statement after it.
    line = next((line for line in text.splitlines() if _OF_DATABASE.match(line)), text)
    return _whole(line)
