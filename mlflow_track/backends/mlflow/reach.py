"""Asks whether a server is there, without MLflow's client, which takes 170 MB to load."""

from __future__ import annotations

import http.client
import os
import re
import socket
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

from mlflow_track.backends.protocol import Unavailable
from mlflow_track.record.masking import mask_password

_MOST_TEXT = 4000
_MOST_BYTES = 64 << 10
_TAGS = re.compile(r"<(script|style)\b.*?</\1>|<[^>]*>", re.DOTALL | re.IGNORECASE)
_SECONDS = 10.0
# Statuses of a server that is not there now, or of what stands before it.
_AWAY = (407, 429, 500, 502, 503, 504)
_DATABASES = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
# The modules of a driver, by its name in the URI; without one, those that SQLAlchemy chooses from.
_DRIVERS = {
    "postgresql": ("psycopg", "psycopg2"),
    "mysql": ("MySQLdb",),
    "mssql": ("pyodbc",),
    **{name: (name,) for name in ("psycopg", "psycopg2", "pymysql", "pyodbc")},
}
_SCHEMES = ("http", "https", "databricks", "databricks-uc", "uc", "sqlite", "file", *_DATABASES)


def ping(uri: str) -> None:
    """Return where something answers under the URI of a store, or there is nothing to ask.

    Raises:
        Unavailable: Nothing does, or no store can ever be there.
    """
    parts = urllib.parse.urlsplit(uri)
    scheme = parts.scheme.partition("+")[0].lower()
    if scheme in ("", "file") or len(scheme) == 1:
        _require_no_folder(uri)
    elif scheme in ("http", "https"):
        _ask(uri)
    elif scheme in _DATABASES and parts.hostname:
        _require_driver(scheme, parts.scheme.partition("+")[2].lower())
        _connect(parts.hostname, parts.port or _DATABASES[scheme])
    elif scheme not in _SCHEMES and not entry_points(group="mlflow.tracking_store", name=scheme):
        raise Unavailable(
            f"got unsupported URI {mask_password(uri)!r}: MLflow has no store of the scheme "
            f"{parts.scheme!r}; give http://…, or sqlite:///… without a server",
            is_final=True,
        )


def proxy_of(url: str) -> str:
    """The proxy that the environment names for a URL, without a password; "" for none."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return ""
    proxies = urllib.request.getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all") or ""
    if not proxy or urllib.request.proxy_bypass(parts.netloc.rpartition("@")[2]):
        return ""
    return mask_password(proxy)


def told_of_status(host: str, status: int, body: str, proxy: str) -> str:
    """What an HTTP status says: who answered, and all its words."""
    who = f"the proxy {proxy} before {host}" if proxy and status == 407 else host
    through = f" through the proxy {proxy}" if proxy and status != 407 else ""
    words = readable(body)
    return f"{who}{through}: it answers {status}{': ' + words if words else ''}"


def readable(text: str) -> str:
    """A message or a page as one line: the words of it."""
    text = " ".join(_TAGS.sub(" ", text).split()) if "<" in text else " ".join(text.split())
    return text if len(text) <= _MOST_TEXT else f"{text[:_MOST_TEXT]}…"


def seconds_of(retry_after: str | None) -> float:
    """The header Retry-After, in seconds; 0 where there is none."""
    import email.utils

    if not retry_after:
        return 0.0
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (TypeError, ValueError):
        return 0.0


def _require_no_folder(uri: str) -> None:
    if (os.environ.get("MLFLOW_ALLOW_FILE_STORE") or "").lower() in ("true", "1"):
        return
    folder = Path(urllib.parse.unquote(urllib.parse.urlsplit(uri).path or uri))
    raise Unavailable(
        f"the tracking URI names the folder {folder}, and MLflow keeps no runs in folders any more "
        f"(its filesystem tracking backend is in maintenance mode): give "
        f"sqlite:///{folder.parent / 'mlflow.db'}, or the URI of a server",
        is_final=True,
    )


def _ask(uri: str) -> None:
    host = urllib.parse.urlsplit(uri).netloc.rpartition("@")[2]
    proxy = proxy_of(uri)
    request = urllib.request.Request(f"{_without_user(uri).rstrip('/')}/health")
    handlers: list[urllib.request.BaseHandler] = []
    if (os.environ.get("MLFLOW_TRACKING_INSECURE_TLS") or "").lower() in ("true", "1"):
        handlers.append(urllib.request.HTTPSHandler(context=ssl._create_unverified_context()))
    seconds = min(_SECONDS, float(os.environ.get("MLFLOW_HTTP_REQUEST_TIMEOUT") or _SECONDS))
    through = f" through the proxy {proxy}" if proxy else ""
    try:
        with urllib.request.build_opener(*handlers).open(request, timeout=seconds) as answer:
            _read(answer, host)
            return
    except urllib.error.HTTPError as error:
        with error:
            if error.code not in _AWAY:
                # It is there: its client hears the rest.
                return
            body = error.read(_MOST_BYTES).decode(errors="replace")
        raise Unavailable(
            told_of_status(host, error.code, body, proxy),
            is_answer=error.code != 429,
            retry_after=seconds_of(error.headers.get("Retry-After")),
        ) from error
    except ssl.SSLError:
        # The client may know certificates that this process does not.
        return
    except (OSError, http.client.HTTPException) as error:
        cause = getattr(error, "reason", None) or error
        if isinstance(cause, ssl.SSLError):
            return
        raise Unavailable(f"{host}{through}: {mask_password(str(cause))}") from error


def _read(answer: http.client.HTTPResponse, host: str) -> None:
    """Raise `Unavailable` where an answer has begun and does not end."""
    deadline, size = time.monotonic() + _SECONDS, 0
    while size < _MOST_BYTES and (piece := answer.read1(_MOST_BYTES)):
        size += len(piece)
        if time.monotonic() > deadline:
            raise Unavailable(f"{host}: Read timed out: the answer drips")


def _without_user(uri: str) -> str:
    parts = urllib.parse.urlsplit(uri)
    return urllib.parse.urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _require_driver(scheme: str, driver: str) -> None:
    modules = _DRIVERS.get(driver or scheme)
    if modules is not None and not any(map(find_spec, modules)):
        raise Unavailable(
            f"driver {modules[0]} is not installed (pip install {modules[0]})", is_final=True
        )


def _connect(host: str, port: int) -> None:
    try:
        socket.create_connection((host, port), timeout=_SECONDS).close()
    except OSError as error:
        raise Unavailable(f"{host}:{port}: {error}") from error
