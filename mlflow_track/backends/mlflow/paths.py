"""Names of artifacts that a server keeps as they are."""

from __future__ import annotations

import contextlib
import re
import tempfile
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

# Bytes of a name that is not UTF-8 come as halves of surrogates.
_NO_TEXT = re.compile(r"[\x00\ud800-\udfff]")
_NOT_IN_URL = re.compile(r"[#%?;:\\\x00-\x1f\x7f]|^ +| +$")


def legal_path(name: str, *, is_asked_by_url: bool) -> str:
    """The nearest name that an artifact store keeps as it is.

    Args:
        name: A path with slashes.
        is_asked_by_url: Whether the store is an MLflow server: it decodes names as URLs until
            nothing changes, and refuses some characters.
    """
    text = _NO_TEXT.sub("_", name)
    return text if not is_asked_by_url or _is_kept(text) else _NOT_IN_URL.sub("_", text)


def _is_kept(text: str) -> bool:
    # MLflow's client takes what follows a question mark for a query, and loads another file.
    if any(sign in text for sign in "#?\\") or re.search(r"[\x00-\x1f\x7f]", text):
        return False
    try:
        decoded = urllib.parse.urlunparse(urllib.parse.urlparse(urllib.parse.unquote(text)))
    except ValueError:
        return False
    return decoded == text


def quoted(name: str) -> str:
    """A name as a part of a URL, where MLflow's client quotes everything but these."""
    return name.replace("%", "%25").replace("?", "%3F").replace("#", "%23")


@contextlib.contextmanager
def called(file: Path, name: str) -> Iterator[Path]:
    """The file under another name, for a client that takes the name of the file."""
    if file.name == name:
        yield file
        return
    with tempfile.TemporaryDirectory(prefix="mlflow-track-") as folder:
        link = Path(folder) / name
        link.symlink_to(file.absolute())
        yield link
