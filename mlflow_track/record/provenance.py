"""Captures provenance: code, command, packages, machine. Never environment variables."""

from __future__ import annotations

import functools
import os
import platform
import sys
from pathlib import Path
from typing import Any

from mlflow_track.record import layout
from mlflow_track.record.files import replace_file
from mlflow_track.record.masking import mask_command, mask_password

_MOST_PATCH_BYTES = 10 << 20
# What stands at an entry of sys.path, as far as importlib.metadata looks: device, inode, mtime.
_Place = tuple[int, int, int]
# The packages of each entry, and the place as it was then. Reading hundreds takes 0.1 s of CPU.
_listed: dict[str, tuple[_Place, frozenset[str]]] = {}


def describe_process() -> dict[str, Any]:
    """Describes this attempt: pid, host, command line, versions."""
    places = tuple(_places().items())
    return {
        "pid": os.getpid(),
        "host": os.uname().nodename,
        "command": mask_command(sys.orig_argv[1:]),
        "python": platform.python_version(),
        **{name: _version(name, places) for name in ("torch", "numpy", "mlflow-track")},
    }


def capture(folder: Path) -> dict[str, Any]:
    """Write requirements.txt and code.patch into `folder`; return the provenance of run.json."""
    packages = sorted(_packages(), key=str.lower)
    replace_file(folder / layout.REQUIREMENTS, ("\n".join(packages) + "\n").encode())
    return {
        "user": _user(),
        "script": sys.argv[0],
        "working_folder": os.getcwd(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "git": _git(folder),
    }


def _packages() -> set[str]:
    """The installed packages, as `name==version`; listed again only after a change."""
    places = _places()
    for entry, place in places.items():
        if _listed.get(entry, (None,))[0] != place:
            _listed[entry] = (place, _packages_in(entry))
    return {package for entry in places for package in _listed[entry][1]}


def _packages_in(entry: str) -> frozenset[str]:
    import importlib.metadata

    # A message parses its text each time that it is asked for.
    found = [d.metadata for d in importlib.metadata.distributions(path=[entry])]
    return frozenset(f"{m['Name']}=={m['Version']}" for m in found if m["Name"])


@functools.lru_cache(maxsize=16)
def _version(package: str, places: tuple[tuple[str, _Place], ...]) -> str | None:
    """The version that is installed while sys.path has these places."""
    import importlib.metadata

    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _places() -> dict[str, _Place]:
    """The entries of sys.path that exist. An install, an upgrade or a removal changes the mtime."""
    places = {}
    for entry in sys.path:
        try:
            found = os.stat(entry or ".")
        except (OSError, ValueError):
            continue
        places[entry] = (found.st_dev, found.st_ino, found.st_mtime_ns)
    return places


def _git(folder: Path) -> dict[str, Any] | None:
    names = _run_git("rev-parse", "HEAD", "--abbrev-ref", "HEAD")
    if names is None:
        return None
    commit, branch = names.decode(errors="surrogateescape").rstrip("\n").split("\n")
    # A .env that was committed by mistake must not come along.
    paths = (":/", *(f":(top,exclude,glob)**/{name}" for name in (".env", ".env.*")))
    patch = _run_git("diff", "HEAD", "--no-color", "--no-ext-diff", "--", *paths) or b""
    if patch:
        text = patch[:_MOST_PATCH_BYTES].decode(errors="surrogateescape")
        masked = mask_password(text).encode(errors="surrogateescape")
        replace_file(folder / layout.PATCH, masked)
    return {
        "commit": commit,
        "branch": branch,
        "is_dirty": bool(patch),
    }


def _run_git(*arguments: str) -> bytes | None:
    """The output of git about the working folder; None without git or outside a repository."""
    import subprocess

    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _user() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
