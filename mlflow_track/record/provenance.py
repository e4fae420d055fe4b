"""Captures provenance: code, command, packages, machine. Never environment variables."""

from __future__ import annotations

import functools
import os
import platform
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mlflow_track.record import layout
from mlflow_track.record.files import legible, replace_file
from mlflow_track.record.git.ask import GitError
from mlflow_track.record.git.changes import Start, describe_code
from mlflow_track.record.info import UnreadableRun
from mlflow_track.record.masking import mask_command, mask_password

# What stands at an entry of sys.path, as far as importlib.metadata looks: device, inode, mtime.
_Place = tuple[int, int, int]
# Of each entry the place as it was then, the packages, and what could not be read. Reading
# hundreds takes 0.1 s of CPU.
_listed: dict[str, tuple[_Place, frozenset[str], frozenset[str]]] = {}


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


def start(
    folder: Path, restate: Callable[[Mapping[str, Any]], None], tell: Callable[..., None]
) -> threading.Thread:
    """Note where the run in `folder` begins, and read in a thread what takes long.

    Args:
        restate: Takes the provenance of run.json.
        tell: Takes a line of the log.
    """
    origin = Origin()

    def work() -> None:
        try:
            found = origin.capture(folder)
            restate(found)
            for line in _remarks(found):
                tell(line, is_shown=False)
        except (OSError, RuntimeError, UnreadableRun) as error:
            tell(f"WARNING: {error}: the origin of the run is not in run.json")

    thread = threading.Thread(target=work, name="provenance", daemon=True)
    try:
        thread.start()
    except RuntimeError:
        if origin.git is not None:
            origin.git.end()
        raise
    return thread


class Origin:
    """The surroundings of a run at the moment of `start_run`: what a `chdir` cannot change later.

    What takes long is read by `capture`. The commit is asked for at once: that costs the start of
    a process.
    """

    def __init__(self) -> None:
        self.missing: dict[str, str] = {}
        self.script = sys.argv[0] if sys.argv else None
        self.folder = self._folder()
        self.git = self._git()

    def capture(self, folder: Path) -> dict[str, Any]:
        """Write requirements.txt and code.patch into `folder`; return the provenance of run.json.

        Each piece stands alone: under `missing` are those that could not be read, with the reason.
        """
        pieces: dict[str, Callable[[], Any]] = {
            "user": _user,
            "platform": platform.platform,
            "cpu_count": os.cpu_count,
            "packages": lambda: self._write_packages(folder),
            "git": lambda: self.git and describe_code(self.git, folder),
        }
        found: dict[str, Any] = {"script": self.script, "working_folder": self.folder}
        for name, read in pieces.items():
            try:
                found[name] = read()
            except Exception as error:
                # Of any kind: it comes from files of other packages, and the rest must be recorded.
                self.missing[name] = legible(mask_password(f"{error or type(error).__name__}"))
                found[name] = None
        del found["packages"]
        if self.script is None:
            self.missing["script"] = "sys.argv is empty"
        return {**found, "missing": self.missing}

    def _folder(self) -> str | None:
        try:
            return os.getcwd()
        except OSError as error:
            self.missing["working_folder"] = f"{error.strerror}: it was deleted"
            return None

    def _git(self) -> Start | None:
        try:
            return Start(_folder_of_code() or self.folder, dict(os.environ))
        except GitError as error:
            self.missing["git"] = str(error)
            return None

    def _write_packages(self, folder: Path) -> None:
        packages, unreadable = _packages()
        if unreadable:
            self.missing["packages"] = "; ".join(sorted(unreadable))
        text = "\n".join(sorted(packages, key=str.lower)) + "\n"
        replace_file(folder / layout.REQUIREMENTS, legible(text).encode())


def _folder_of_code() -> str | None:
    """The folder of the script that runs; None where there is none, or Python's own one runs it.

    The script's, not the shell's: `python ~/code/train.py` may be started anywhere.
    """
    # Absolute, unlike sys.argv[0].
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    if not isinstance(script, str) or not script.endswith((".py", ".pyw")):
        return None
    path = Path(os.path.realpath(script))
    installed = {"site-packages", "dist-packages"}
    library = Path(os.path.realpath(os.__file__)).parent
    if installed & set(path.parts) or path.is_relative_to(library) or not path.is_file():
        return None
    return str(path.parent)


def _packages() -> tuple[set[str], set[str]]:
    """The installed packages, as `name==version`, and what of them cannot be read.

    They are listed again only after a change.
    """
    places = _places()
    for entry, place in places.items():
        if _listed.get(entry, (None,))[0] != place:
            _listed[entry] = (place, *_packages_in(entry))
    found = [_listed[entry] for entry in places]
    return set().union(*(p for _, p, _ in found)), set().union(*(u for _, _, u in found))


def _packages_in(entry: str) -> tuple[frozenset[str], frozenset[str]]:
    import importlib.metadata

    packages, unreadable = set(), set()
    try:
        distributions = list(importlib.metadata.distributions(path=[entry]))
    except Exception as error:
        return frozenset(), frozenset({f"{entry}: {error}"})
    for distribution in distributions:
        try:
            # A message parses its text each time that it is asked for.
            metadata = distribution.metadata
            if name := metadata["Name"]:
                if not (version := metadata["Version"]):
                    raise ValueError("no version")
                packages.add(f"{name}=={version}")
        except Exception as error:
            # The folder's name has both as well: numpy-2.0.dist-info.
            folder = Path(str(getattr(distribution, "_path", ""))).stem
            name, _, version = folder.rpartition("-")
            if name:
                packages.add(f"{name}=={version}")
            unreadable.add(f"the metadata of {folder or entry}: {error}")
    return frozenset(packages), frozenset(unreadable)


@functools.lru_cache(maxsize=16)
def _version(package: str, places: tuple[tuple[str, _Place], ...]) -> str | None:
    """The version that is installed while sys.path has these places."""
    import importlib.metadata

    try:
        return importlib.metadata.version(package)
    except Exception:
        # It is not installed, or its metadata is damaged, in one of many ways.
        return None


def _places() -> dict[str, _Place]:
    """The entries of sys.path that exist. An install, an upgrade or a removal changes the mtime."""
    places = {}
    for entry in sys.path:
        if not isinstance(entry, str):
            continue
        try:
            found = os.stat(entry or ".")
        except (OSError, ValueError):
            continue
        places[entry] = (found.st_dev, found.st_ino, found.st_mtime_ns)
    return places


def _user() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (ImportError, KeyError, OSError):
        return str(os.getuid())


def _remarks(found: Mapping[str, Any]) -> list[str]:
    """The lines of training.log about what a provenance lacks."""
    lines = [f"provenance: {name} is not known: {why}" for name, why in found["missing"].items()]
    git = found["git"] or {}
    if git.get("unknown"):
        lines.append(f"provenance: the uncommitted changes are not known: {git['unknown']}")
    if left_out := git.get("left_out"):
        named = "; ".join(f"{path} ({why})" for path, why in left_out.items())
        lines.append(f"{layout.PATCH} lacks changes: {named}")
    if untracked := git.get("untracked"):
        lines.append(f"{layout.PATCH} lacks files that git does not track: {', '.join(untracked)}")
    return lines
