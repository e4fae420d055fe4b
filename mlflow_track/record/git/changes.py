"""What was changed after the commit of a run: code.patch, and the names of what is not in it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from mlflow_track.record import layout
from mlflow_track.record.files import legible, read_file, replace_file
from mlflow_track.record.git.ask import Git, GitError, answer_of, end
from mlflow_track.record.git.patch import masked, sections, unquoted
from mlflow_track.record.masking import mask_password
from mlflow_track.wording import count_text, size_text

# Of one file, before or after: git takes a larger one for binary, without reading it.
_MOST_FILE_BYTES = 2 << 20
# Of all files together, and of what is asked for at once where that is more.
_MOST_PATCH_BYTES, _PIECE_BYTES, _PIECE_NAMES = 10 << 20, 1 << 20, 64 << 10
_MOST_LIST_BYTES = 32 << 20
_MOST_NAMED = 50
_MOST_SINGLE = 100
_SUBMODULE = "160000"
_SUBMODULE_COMMIT = re.compile(rb"^\+Subproject commit (\w+?)(-dirty)?$", re.MULTILINE)
# Files that consist of secrets: their names are noted, their content is not.
_SECRET_FILES = re.compile(
    r"\.env(?:\..*|rc)?|.*\.env|.*\.(?:pem|key|p12|pfx|jks|keystore|kdbx|ppk)|id_(?:rsa|dsa|ecdsa|"
    r"ed25519).*|\.?netrc|_netrc|\.pgpass|\.pypirc|\.npmrc|\.git-credentials|\.htpasswd|"
    r"kubeconfig|\.?(?:secrets?|credentials?)(?:\.\w+)*",
    re.IGNORECASE,
)
_CODE = frozenset(
    ".py .pyi .ipynb .sh .yaml .yml .toml .json .cfg .ini .c .cc .cpp .h .cu .cuh .rs .go .js "
    ".ts .java .jl .r .sql".split()
)
_DIFF = (
    *("-c", f"core.bigFileThreshold={_MOST_FILE_BYTES}", "diff", "--no-abbrev", "--no-color"),
    *("--no-ext-diff", "--no-textconv", "--no-renames", "-O/dev/null"),
    "--ignore-submodules=untracked",
)
_PATCH = (
    *("--patch", "--src-prefix=a/", "--dst-prefix=b/", "-U3", "--inter-hunk-context=0"),
    *("--full-index", "--diff-algorithm=myers", "--submodule=short"),
)


class Start:
    """The question that is begun while `start_run` is called: it is about that moment.

    Args:
        folder: The folder of the code; None is the working folder.
        environment: The variables of that moment.
    """

    def __init__(self, folder: str | None, environment: Mapping[str, str]) -> None:
        git = Git(folder, environment)
        self.environment = environment
        self.until = git.until
        self.names = git.start("rev-parse", "HEAD", "--abbrev-ref", "HEAD", "--show-toplevel")

    def end(self) -> None:
        """Ask no more."""
        end(self.names)


class _Change(NamedTuple):
    """A tracked file that differs from the commit."""

    path: str
    is_submodule: bool
    is_filtered: bool = False


def describe_code(start: Start, folder: Path) -> dict[str, Any] | None:
    """The commit and what was changed after it, for run.json; writes code.patch into `folder`.

    Returns:
        None outside a repository.

    Raises:
        GitError: Git does not tell the commit; the message has its reason.
    """
    try:
        names = answer_of(start.names, _MOST_LIST_BYTES, start.until)
    except GitError as error:
        if "not a git repository" in str(error):
            return None
        raise
    commit, branch, root = names.decode(errors="surrogateescape").rstrip("\n").split("\n", 2)
    git = Git(root, start.environment, until=start.until)
    git = Git(root, start.environment, git.configured_filters(), start.until)
    described: dict[str, Any] = {
        "commit": commit,
        "branch": legible(mask_password(branch)),
        "root": legible(root),
        "is_dirty": None,
        "left_out": {},
        "untracked": [],
        "unknown": "",
    }
    try:
        changes, patch = _changes(git, commit)
        if not changes:
            described["is_dirty"] = False
        elif not all(change.is_filtered for change in changes):
            described["is_dirty"] = True
        described["left_out"] = _bounded(_write_patch(git, commit, changes, patch, folder))
        described["untracked"] = _untracked(git, root, folder)
    except GitError as error:
        described["unknown"] = str(error)
    return described


def _changes(git: Git, commit: str) -> tuple[list[_Change], bytes | None]:
    """The tracked files that differ from the commit, and their patch; None for one too large."""
    try:
        said = git.ask(*_DIFF, "--raw", *_PATCH, commit, most_bytes=_MOST_PATCH_BYTES)
    except GitError:
        # Too much; or a file that cannot be read, which the list does not need.
        listed, patch = git.ask(*_DIFF, "--raw", commit, most_bytes=_MOST_LIST_BYTES), None
    else:
        listed, _, patch = said.partition(b"\n\n")
    # A file with a conflict is listed twice.
    changes: dict[str, _Change] = {}
    for line in listed.splitlines():
        head, _, name = line.partition(b"\t")
        path = unquoted(os.fsdecode(name))
        changes[path] = _Change(path, _SUBMODULE in head.decode().lstrip(":").split(" ")[:2])
    if git.filters and changes:
        asked = b"".join(os.fsencode(path) + b"\0" for path in changes)
        said = git.ask(
            *("check-attr", "-z", "--stdin", "filter"), most_bytes=_MOST_LIST_BYTES, content=asked
        )
        for path, _, name in zip(*[map(os.fsdecode, said.split(b"\0"))] * 3, strict=False):
            changes[path] = changes[path]._replace(is_filtered=name in git.filters)
    return list(changes.values()), patch


def _write_patch(
    git: Git, commit: str, changes: Sequence[_Change], patch: bytes | None, folder: Path
) -> dict[str, str]:
    """Write the changes of text that fit; return the others, with a reason each."""
    left_out: dict[str, str] = {}
    fitting = []
    for change in changes:
        if _SECRET_FILES.fullmatch(PurePosixPath(change.path).name):
            left_out[change.path] = "a file of secrets"
        elif change.is_filtered:
            left_out[change.path] = "a filter of git would have to run to compare it"
        else:
            fitting.append(change.path)
    parts = [patch] if patch is not None else _small_first(git, commit, fitting, left_out)
    submodules = {change.path for change in changes if change.is_submodule}
    known = set(fitting)
    pieces: list[bytes] = []
    for path, section in (found for part in parts for found in sections(part)):
        if path in submodules:
            left_out[path] = _submodule(section)
        elif path in known:
            text, why = masked(path, section)
            pieces.append(text)
            if why == "binary" and (size := _size(git, path)) > _MOST_FILE_BYTES:
                why = f"large ({size_text(size)})"
            if why:
                left_out[path] = why
    _store(folder, pieces)
    return left_out


def _store(folder: Path, pieces: Sequence[bytes]) -> None:
    """Write code.patch, or none; that of an earlier attempt, with other changes, is set aside."""
    path = folder / layout.PATCH
    content = b"".join(pieces)
    if path.exists():
        if read_file(path, 2 * _MOST_PATCH_BYTES) == content:
            return
        names = (folder / layout.earlier_patch(number) for number in range(1, 10_000))
        path.rename(next(name for name in names if not name.exists()))
    if content:
        replace_file(path, content)


def _small_first(
    git: Git, commit: str, paths: Iterable[str], left_out: dict[str, str]
) -> Iterator[bytes]:
    """The patches of the files, the smallest first, as far as they fit; notes the others."""
    sizes = {path: _size(git, path) for path in paths}
    total = 0
    for piece in _pieces(sorted(sizes, key=lambda path: (sizes[path], path)), sizes):
        if total > _MOST_PATCH_BYTES:
            left_out |= {p: f"too much in all ({size_text(sizes[p])})" for p in piece}
            continue
        for text in _patches(git, commit, piece, left_out):
            total += len(text)
            yield text


def _pieces(paths: Iterable[str], sizes: Mapping[str, int]) -> Iterator[list[str]]:
    """Files that are asked for at once: few enough for a command line, and for the memory."""
    piece: list[str] = []
    names = size = 0
    for path in paths:
        names, size = names + len(os.fsencode(path)), size + sizes[path]
        if piece and (names > _PIECE_NAMES or size > _PIECE_BYTES):
            yield piece
            piece, names, size = [], len(os.fsencode(path)), sizes[path]
        piece.append(path)
    if piece:
        yield piece


def _patches(
    git: Git, commit: str, paths: Sequence[str], left_out: dict[str, str]
) -> Iterator[bytes]:
    try:
        yield git.ask(*_DIFF, *_PATCH, commit, "--", *paths, most_bytes=4 * _MOST_FILE_BYTES)
    except GitError as error:
        if len(paths) == 1 or len(paths) > _MOST_SINGLE:
            left_out |= dict.fromkeys(paths, str(error))
            return
        # One that cannot be read takes no other along.
        for path in paths:
            yield from _patches(git, commit, [path], left_out)


def _size(git: Git, path: str) -> int:
    try:
        return os.lstat(os.path.join(git.folder or "", path)).st_size
    except OSError:
        return 0


def _submodule(section: bytes) -> str:
    """The state of a submodule, in a few words."""
    found = _SUBMODULE_COMMIT.search(section)
    if found is None:
        return "a submodule that was removed"
    changed = " with uncommitted changes" if found[2] else ""
    return f"a submodule at {found[1].decode()}{changed}"


def _untracked(git: Git, root: str, folder: Path) -> list[str]:
    """Files that git does not know and does not ignore, code first; of new folders the name."""
    said = git.ask(
        *("ls-files", "-z", "--others", "--exclude-standard", "--directory"),
        "--no-empty-directory",
        most_bytes=_MOST_LIST_BYTES,
    )
    runs = {os.path.realpath(above) for above in (folder, *folder.parents[:2])}
    names = [os.fsdecode(name) for name in said.split(b"\0") if name]
    found = [n for n in names if os.path.realpath(os.path.join(root, n)) not in runs]
    found.sort(key=lambda name: (PurePosixPath(name).suffix.lower() not in _CODE, name))
    more = len(found) - _MOST_NAMED
    others = [f"and {count_text(more, 'other')}"] if more > 0 else []
    return [*map(legible, found[:_MOST_NAMED]), *others]


def _bounded(left_out: Mapping[str, str]) -> dict[str, str]:
    items = [(legible(path), legible(why)) for path, why in left_out.items()]
    if (more := len(items) - _MOST_NAMED) > 0:
        items[_MOST_NAMED:] = [("…", f"and {count_text(more, 'other')}")]
    return dict(items)
