"""Damaged run folders, each a function of one seed: one thing is wrong, and a good run is beside.

The good ones are the frozen folders, so nothing has to be trained first.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow_track.checkpoint.disk.verify import digest_of_manifest

FROZEN = Path(__file__).resolve().parent.parent / "frozen"
# Served whatever the run beside it holds; with a metric of its own, which tells it from the others.
NEIGHBOUR = FROZEN / "runs-v1" / "demo" / "20261127-084656-0e97d2"
VICTIMS = sorted(
    path.parent for path in FROZEN.glob("runs-v*/*/*/run.json") if path.parent != NEIGHBOUR
)
# What lies outside the run, and is in no answer.
SECRET = "TOP-SECRET-CONTENT"
OUTSIDE = {"secret.csv": f"step,time,{SECRET}\n0,1.0,0.5\n", "secrets/secret.txt": SECRET}


_PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c489"
    "0000000d49444154789c63f8cfc0f01f00050001ff89993d1d0000000049454e44ae426082"
)
MEDIA = (
    ("image", ".png", _PNG),
    ("text", ".txt", b"hello"),
    ("histogram", ".json", b'{"edges": [0, 1, 2], "counts": [1, 2], "nan": 0}'),
)


@dataclass(frozen=True)
class Mutant:
    """One damaged run.

    Attributes:
        root: The folder of all runs.
        victim: The damaged run's folder.
        neighbour: The good run's folder, in the same root.
        what: What was done to the victim.
        is_unreadable: Whether nothing of its run.json can be read.
        has_all_kinds: Whether its checkpoints hold `states.all_kinds`.
    """

    root: Path
    victim: Path
    neighbour: Path
    what: str
    is_unreadable: bool
    has_all_kinds: bool


def make(seed: int, folder: Path) -> Mutant:
    """The mutant of this seed in the new folder `folder`."""
    rng = random.Random(seed)
    return _made(rng.choice(VICTIMS), folder, rng)


def undamaged(source: Path, folder: Path) -> Mutant:
    """The same with nothing wrong: one of VICTIMS as it is."""
    return _made(source, folder, None)


def _made(source: Path, folder: Path, rng: random.Random | None) -> Mutant:
    root = folder / "runs"
    victim = root / source.relative_to(source.parents[1])
    neighbour = root / NEIGHBOUR.relative_to(NEIGHBOUR.parents[1])
    shutil.copytree(source, victim)
    shutil.copytree(NEIGHBOUR, neighbour)
    (folder / "secrets").mkdir()
    for name, content in OUTSIDE.items():
        (folder / name).write_text(content)
    if not (victim / "artifacts").exists():
        (victim / "artifacts").mkdir()
        (victim / "artifacts" / "notes.txt").write_text("hello\n")
    if not (victim / "media.jsonl").exists():
        _add_media(victim)
    what = "nothing" if rng is None else _damage(victim, rng)
    has_all_kinds = any(b'"kinds"' in path.read_bytes() for path in source.rglob("state.json"))
    return Mutant(root, victim, neighbour, what, not _is_described(victim), has_all_kinds)


def _add_media(victim: Path) -> None:
    """An image, a text and a histogram of a step, as no folder of an earlier version has them."""
    (victim / "artifacts" / "series").mkdir()
    lines = []
    for number, (kind, ending, content) in enumerate(MEDIA):
        name = f"series/step-000000007{ending}"
        (victim / "artifacts" / name).write_bytes(content)
        line = {"number": number, "kind": kind, "key": "series", "step": 7, "time": 1.7e9}
        lines.append(json.dumps({**line, "file": name}) + "\n")
    (victim / "media.jsonl").write_text("".join(lines))


def _is_described(victim: Path) -> bool:
    """Whether run.json is a regular file with a JSON object in it."""
    file = victim / "run.json"
    if file.is_symlink() or not file.is_file() or file.stat().st_size > 1 << 24:
        return False
    try:
        return isinstance(json.loads(file.read_bytes()), dict)
    except (ValueError, RecursionError):
        return False


def _damage(victim: Path, rng: random.Random) -> str:
    how = rng.random()
    if how < 0.4:
        choices = [victim / "run.json"] * 4 + [victim / "config.json"] * 2
        choices += sorted(victim.glob("mirror/*.json")) * 2
        choices += sorted(victim.glob("checkpoints/*/*.json"))
        choices += sorted(victim.glob("artifacts/series/*.json"))
        file = rng.choice(choices)
        said = _damage_json(file, rng) if rng.random() < 0.85 else _damage_text(file, rng)
    elif how < 0.6:
        file = rng.choice([victim / "metrics.csv"] * 3 + sorted(victim.glob("*metrics*.csv")))
        said = _damage_csv(file, rng)
    elif how < 0.85:
        file = rng.choice(sorted(victim.rglob("*")))
        said = _replace(file, rng)
    else:
        files = sorted(path for path in victim.rglob("*") if path.is_file())
        file = rng.choice([*files, *[victim / "media.jsonl"] * 3])
        said = _damage_bytes(file, rng)
    return f"{file.relative_to(victim)}: {said}"


# --- values ---


@dataclass(frozen=True)
class _Raw:
    """Stands in a JSON document for text that `json` would not write."""

    text: str

    def __str__(self) -> str:
        return f"{self.text[:12]}… ({len(self.text):,} characters)"


_VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 1e308, -1e308, 1e300, 5e-324),
    *(float("nan"), float("inf"), float("-inf"), 2**63, -(2**63), 2**64, 10**400, 1e20),
    *("", "x", "1", "nan", "..", "../..", "/", "\0\x1b[31m\r\n", "\udce9\ud800", "ü" * 300),
    *("y" * 100_000, [], {}, [1], [[]], [None, "x", 3], {"a": 1}, {"": {"": {}}}),
    *([0, 1], [2**63, 2**64], [{}], [[1, 2], "x"], {"x" * 70_000: 1}),
    *(_Raw("[" * 100_000 + "]" * 100_000), _Raw('{"a":' * 100_000 + "1" + "}" * 100_000)),
    *(_Raw("1" * 400), _Raw("1" * 5000), _Raw("1e999"), _Raw("-0.0"), _Raw('{"a": 1, "a": [2]}')),
]


def _spots(tree: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = tree.items() if isinstance(tree, dict) else []
    for key, value in [*items, *(enumerate(tree) if isinstance(tree, list) else [])]:
        yield (*at, key)
        yield from _spots(value, (*at, key))


def _damage_json(file: Path, rng: random.Random) -> str:
    tree = json.loads(file.read_bytes())
    spot = rng.choice(list(_spots(tree)))
    holder = tree
    for key in spot[:-1]:
        holder = holder[key]
    place = ".".join(map(str, spot))
    how = rng.random()
    value = rng.choice(_VALUES)
    said = f"{str(value)[:24]!r}" if not isinstance(value, _Raw) else str(value)
    if how < 0.08:
        tree, what = value, f"all of it = {said}"
    elif how < 0.2:
        del holder[spot[-1]]
        what = f"{place} gone"
    elif how < 0.28 and isinstance(holder, dict):
        name = rng.choice(["", "\0", "x" * 300, "../x", "\udce9", "$tensor", "a" * 100_000])
        holder[name] = holder.pop(spot[-1])
        what = f"{place} renamed to {name[:12]!r}"
    elif how < 0.34 and isinstance(holder, list):
        holder *= 10_000 if len(holder) < 10 else 100
        what = f"{place} many times"
    else:
        holder[spot[-1]] = value
        what = f"{place} = {said}"
    is_sealed = file.name == "manifest.json" and isinstance(tree, dict) and rng.random() < 0.7
    if is_sealed and not isinstance(tree.get("digest"), _Raw):
        # As somebody who wants to harm would do it.
        tree.pop("digest", None)
        with contextlib.suppress(TypeError, ValueError, RecursionError):
            tree["digest"] = digest_of_manifest(tree)
            what += ", sealed"
    file.write_bytes(_dumped(tree))
    return what


def _dumped(tree: Any) -> bytes:
    raw: list[str] = []

    def mark(value: Any) -> str:
        raw.append(value.text)
        return f"@raw {len(raw) - 1}@"

    text = json.dumps(tree, default=mark, indent=1)
    for number, content in enumerate(raw):
        text = text.replace(f'"@raw {number}@"', content)
    return text.encode("utf-8", "surrogatepass")


def _damage_text(file: Path, rng: random.Random) -> str:
    """JSON that is none, or that says a thing twice."""
    data = file.read_bytes()
    how = rng.choice(["twice", "comma", "latin", "null", "bom", "after", "utf-16"])
    if how == "twice":
        data = data.replace(b"{", b'{"status": 3, "step": [], "metrics": 1, ', 1)
    elif how == "comma":
        data = data.replace(b"}", b",}", 1)
    elif how == "latin":
        data = data.replace(b'"', b'"\xe9\xff', 1)
    elif how == "null":
        data = data[: len(data) // 2] + bytes(len(data) // 2)
    elif how == "bom":
        data = b"\xef\xbb\xbf" + data
    elif how == "after":
        data += b"{}"
    else:
        data = data.decode().encode("utf-16")
    file.write_bytes(data)
    return how


# --- rows ---

_CELLS = [
    *("1e308", "-1e308", "1e999", "-inf", "nan", str(2**63), str(2**64), str(-(2**63)), "-1"),
    *("9" * 400, "7" * 5000, "x", '"', "\0", "-5", "1e300", "", "0x10", "1_0", " 1", "١", "2.5"),
    *("9007199254740993", "1795769029000", "-1e300", "true", "null", "[1]", "{}"),
]


def _damage_csv(file: Path, rng: random.Random) -> str:
    lines = file.read_bytes().decode().split("\n")[:-1]
    how = rng.random()
    row = rng.randrange(len(lines))
    if how < 0.6:
        cells = lines[row].split(",")
        column = rng.randrange(len(cells))
        cells[column] = rng.choice(_CELLS)
        lines[row] = ",".join(cells)
        what = f"row {row} column {column} = {cells[column][:12]!r}"
        if row and rng.random() < 0.3:
            other = lines[-1].split(",")
            other[min(column, len(other) - 1)] = "-" + cells[column].lstrip("-")
            lines.append(",".join(other))
            what += ", and negated in another"
    else:
        what = rng.choice(
            ["wide", "short", "many", "header", "names", "same", "one", "none", "steps", "torn"]
        )
        changes: dict[str, Callable[[], Any]] = {
            "wide": lambda: lines.insert(row + 1, lines[-1] + ",1" * 100_000),
            "short": lambda: lines.append("7"),
            "many": lambda: lines.extend([lines[-1]] * 20_000),
            "header": lambda: lines.__setitem__(0, lines[0] + "," + "n" * 10_000_000),
            "names": lambda: lines.__setitem__(
                0, lines[0] + "".join(f",n{i}" for i in range(5000))
            ),
            "same": lambda: lines.__setitem__(0, ",".join([*lines[0].split(",")[:3]] * 2)),
            "one": lambda: lines.__setitem__(slice(None), [",".join(lines)]),
            "none": lambda: lines.__setitem__(slice(1, None), []),
            "steps": lambda: lines.extend(
                f"{step},1e18,0.5" for step in (2**63 - 1, 2**63, -(2**63), 10**30, 0)
            ),
            "torn": lambda: lines.append("x" * 3_000_000),
        }
        changes[what]()
    file.write_bytes("\n".join(lines).encode() + b"\n" * (what != "torn"))
    return what


# --- other things than files ---


def _clear(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _socket(path: Path) -> None:
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        # The path of a socket is short.
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"/proc/self/fd/{folder}/{path.name}")
    finally:
        os.close(folder)


def _huge(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(10 << 30)


def _huge_from_begin(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    os.truncate(path, 10 << 30)


def _replace(path: Path, rng: random.Random) -> str:
    kinds: dict[str, Callable[[], Any]] = {
        "nothing": lambda: None,
        "fifo": lambda: os.mkfifo(path),
        "folder": path.mkdir,
        "socket": lambda: _socket(path),
        "link to /dev/zero": lambda: path.symlink_to("/dev/zero"),
        "link to itself": lambda: path.symlink_to(path.name),
        "link to nothing": lambda: path.symlink_to("nowhere"),
        "link to a parent": lambda: path.symlink_to(".."),
        "link to a secret file": lambda: path.symlink_to(secret),
        "link to a secret folder": lambda: path.symlink_to(secrets),
        "empty file": lambda: path.write_bytes(b""),
        "garbage": lambda: path.write_bytes(rng.randbytes(300)),
        "zeros": lambda: path.write_bytes(bytes(5000)),
        "10 GB of zeros": lambda: _huge(path),
    }
    # Links like those of a folder that was copied to where they lead.
    home = path
    while home.name != "runs":
        home = home.parent
    secret, secrets = home.parent / "secret.csv", home.parent / "secrets"
    kind = rng.choice(list(kinds))
    data = path.read_bytes() if path.is_file() else None
    _clear(path)
    if kind == "10 GB of zeros" and data is not None and rng.random() < 0.5:
        _huge_from_begin(path, data)
        return "10 GB, zeros after its content"
    kinds[kind]()
    return kind


def _damage_bytes(file: Path, rng: random.Random) -> str:
    data = bytearray(file.read_bytes())
    how = rng.choice(["cut", "flip", "junk", "doubled", "zeros at the end"])
    at = rng.randrange(len(data)) if data else 0
    if how == "cut":
        del data[at:]
    elif how == "flip" and data:
        data[at] ^= 1 << rng.randrange(8)
    elif how == "junk":
        data[at : at + 50] = rng.randbytes(50)
    elif how == "doubled":
        data *= 2
    else:
        data[at:] = bytes(max(0, len(data) - at))
    file.write_bytes(data)
    return f"{how} at {at}"
