"""Where a run came from: code, command, packages, machine. Never environment variables."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Any

from mlflow_track.record import layout
from mlflow_track.record.files import replace_file
from mlflow_track.record.masking import mask_command, mask_password

_MOST_PATCH_BYTES = 10 << 20


def describe_process() -> dict[str, Any]:
    """What identifies this attempt: pid, host, command line, versions."""
    return {
        "pid": os.getpid(),
        "host": os.uname().nodename,
        "command": mask_command(sys.orig_argv[1:]),
        "python": platform.python_version(),
        **{name: _version(name) for name in ("torch", "numpy", "mlflow-track")},
    }


def capture(folder: Path) -> dict[str, Any]:
    """Write requirements.txt and code.patch into `folder`; return the provenance of run.json."""
    import importlib.metadata

    packages = sorted(
        {
            f"{d.metadata['Name']}=={d.version}"
            for d in importlib.metadata.distributions()
            if d.metadata["Name"]
        },
        key=str.lower,
    )
    replace_file(folder / layout.REQUIREMENTS, ("\n".join(packages) + "\n").encode())
    return {
        "user": _user(),
        "script": sys.argv[0],
        "working_folder": os.getcwd(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "git": _git(folder),
    }


def _git(folder: Path) -> dict[str, Any] | None:
    commit = _run_git("rev-parse", "HEAD")
    if commit is None:
        return None
    # A .env that was committed by mistake must not come along.
    paths = (":/", *(f":(top,exclude,glob)**/{name}" for name in (".env", ".env.*")))
    patch = _run_git("diff", "HEAD", "--no-color", "--no-ext-diff", "--", *paths) or b""
    if patch:
        text = patch[:_MOST_PATCH_BYTES].decode(errors="surrogateescape")
        masked = mask_password(text).encode(errors="surrogateescape")
        replace_file(folder / layout.PATCH, masked)
    branch = _run_git("rev-parse", "--abbrev-ref", "HEAD") or b""
    return {
        "commit": commit.decode().strip(),
        "branch": branch.decode().strip(),
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


def _version(package: str) -> str | None:
    import importlib.metadata

    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _user() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
