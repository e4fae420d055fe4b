"""The parts of a report about where runs come from: params, artifacts, provenance."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from mlflow_track.analysis.compare import differing_params
from mlflow_track.analysis.differences import code_difference, package_difference
from mlflow_track.analysis.summary import Summary
from mlflow_track.draw.page import Page, table
from mlflow_track.record import layout
from mlflow_track.record.files import files_below, read_file
from mlflow_track.record.media.content import read_text
from mlflow_track.record.media.index import listed_files
from mlflow_track.record.params import param_text
from mlflow_track.record.schema import Git
from mlflow_track.wording import command_text, count_text

# Of more runs the page would be too large to send.
_MOST_RUNS = 20
_KINDS = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".gif": "image/gif",
    ".webp": "image/webp",
    ".svg": "image/svg+xml",
}
_TEXTS = (".txt", ".md", ".log")
_MOST_FILES = 6
# A report is sent by mail: a file that is larger stays where it is.
_MOST_PICTURE_BYTES, _MOST_TEXT_BYTES = 600_000, 6_000


def params_as_html(runs: Sequence[Summary]) -> str:
    """The params that are the same in all runs."""
    differing = set(differing_params(runs))
    common = {k: v for run in runs for k, v in run.params.items() if k not in differing}
    rows = "".join(
        f'<tr><td>{escape(name)}</td><td class="text">{escape(param_text(value))}</td></tr>'
        for name, value in sorted(common.items())
    )
    if not rows:
        return ""
    count = count_text(len(common), "param")
    return (
        f"<h2>Params</h2><details><summary>{count} with the same value in all runs</summary>"
        f"<table>{rows}</table></details>"
    )


def artifacts_as_html(page: Page) -> str:
    """The pictures and texts of the first runs."""
    parts = []
    for number in page.order[:_MOST_RUNS]:
        path = page.runs[number].path
        inside = []
        for file, name in _files(path, list(_KINDS), _MOST_PICTURE_BYTES):
            data = base64.b64encode(read_file(file, _MOST_PICTURE_BYTES)).decode()
            uri = f"data:{_KINDS[file.suffix.lower()]};base64,{data}"
            inside.append(f'<h3>{escape(name)}</h3><img alt="{escape(name)}" src="{uri}">')
        for file, name in _files(path, _TEXTS, 1 << 30):
            text = read_text(file, _MOST_TEXT_BYTES)
            inside.append(f"<h3>{escape(name)}</h3><pre>{escape(text)}</pre>")
        if inside:
            parts.append(
                f"<details{' open' if len(page.runs) <= 3 else ''}>"
                f"<summary>{page.label(number)}</summary>{''.join(inside)}</details>"
            )
    return f"<h2>Samples and pictures</h2>{''.join(parts)}" if parts else ""


def _files(run: Path, suffixes: Sequence[str], most_bytes: int) -> Iterator[tuple[Path, str]]:
    root, count = run / layout.ARTIFACTS, 0
    # Those of steps are shown in a separate part.
    listed = listed_files(run)
    for file in files_below(root):
        name = file.relative_to(root).as_posix()
        is_kind = file.suffix.lower() in suffixes and not file.name.startswith(".")
        if is_kind and name not in listed and file.lstat().st_size <= most_bytes:
            count += 1
            yield file, name
            if count == _MOST_FILES:
                return


def provenance_as_html(page: Page) -> str:
    """The commit, command and machine of the first runs, and how their code differs."""
    head = ("run", "commit", "command", "machine", "versions", "data", "attempts")
    rows = []
    for number in page.order[:_MOST_RUNS]:
        run = page.runs[number]
        provenance, attempt = run.info.provenance, run.info.trained
        git = provenance.git or Git()
        changed = {True: " + uncommitted changes", None: " (uncommitted changes: unknown)"}
        cells = (
            f"{git.commit[:12]}{changed.get(git.is_dirty, '')}" if git.commit else "",
            command_text(run.info.command),
            f"{attempt.host or ''} {provenance.platform or ''}",
            f"Python {attempt.python or '?'}, torch {attempt.torch or '?'}",
            ", ".join(f"{item.name} {item.sha256[:12]}" for item in run.info.inputs),
            "; ".join(" ".join(filter(None, (a.status, a.error))) for a in run.info.attempts),
        )
        texts = "".join(f'<td class="text">{escape(cell)}</td>' for cell in cells)
        rows.append(f"<tr><td>{page.label(number)}</td>{texts}</tr>")
    differences = []
    first, *others = page.order[:_MOST_RUNS]
    for number in others:
        old, new = page.runs[first], page.runs[number]
        lines = code_difference(old, new, is_full=False) + package_difference(old, new)
        if lines:
            text = escape("\n".join(lines[:200]))
            title = f"{escape(page.names[first])} and {escape(page.names[number])}"
            differences.append(f"<h3>{title}</h3><pre>{text}</pre>")
    parts = [table(head, rows), page.limited(_MOST_RUNS), *differences]
    return f"<h2>Provenance</h2>{''.join(parts)}"
