"""Which part of a record the server lacks, and the order in which it is sent."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from mlflow_track.mirror.sink import Cell, Gone, Refused, Sink, Target
from mlflow_track.mirror.state import (
    MirrorState,
    pending_artifacts,
    pending_checkpoints,
    refused_items,
)
from mlflow_track.record.directory import KILLED, RUNNING, is_held, true_status
from mlflow_track.record.files import read_json
from mlflow_track.record.params import flatten, read_config
from mlflow_track.record.rows import Row, read_rows

_PIECE_BYTES = 128 << 10
_BATCH = 1000
_MOST_PIECES = 50
_RECORD_TAG = "mlflow_track.run_id"
_LATEST_TAG = "mlflow_track.latest_checkpoint"
_MANIFEST = "manifest.json"


class Shipper:
    """Sends the record of one run to one server. The caller holds the lock of the mirror.

    Args:
        path: The run's folder.
        sink: The server.
        tracking_uri: Its name, without a password.
    """

    def __init__(self, path: Path, sink: Sink, tracking_uri: str) -> None:
        self.path = path
        self.state = MirrorState.read(path)
        self._sink = sink
        self._tracking_uri = tracking_uri
        self._is_linked = False
        # (metric, step) -> value of rows that the server has and that a rewind took out.
        self._repeated: dict[tuple[str, int], float] = {}
        self._repeated_of = 0
        # What MLflow itself said of the run, as `mlflow run` does, stays.
        self._own_tags: set[str] = set()

    def ship(self) -> bool:
        """Send what is there.

        Returns:
            Whether the server has all of it; the status at the end is told by `finish`.
        """
        info = self._read_info()
        try:
            self._link(info)
            self._send_description(info)
            is_drained = self._send_metrics()
            self._send_artifacts(is_at_end=False)
            self._send_checkpoints()
        except Gone:
            # Somebody deleted the run at the server: it is made again, with everything.
            self._forget()
            raise
        return is_drained

    def finish(self) -> str:
        """Tell the server how the run ended, after everything else is there; returns the status."""
        info = self._read_info()
        status = true_status(self.path, info)
        if status == RUNNING:
            return status
        self._send_description(info)
        self._send_artifacts(is_at_end=True)
        ended = info["ended"] if info["status"] == status else None
        end_time = round(1000 * (ended or self._last_sign_of_life()))
        self._sink.set_status(self.state.run_id, status, end_time)
        self.state.status = status
        self._save()
        return status

    def note_error(self, error: str | None) -> None:
        if self.state.error != error:
            self.state.error = error
            self._save()

    # --- the run at the server ---

    def _link(self, info: dict[str, Any]) -> None:
        if self._is_linked:
            return
        state, wanted = self.state, info.get("mirror") or {}
        attach = wanted.get("attach") if wanted.get("tracking_uri") == self._tracking_uri else None
        if attach in state.gone:
            attach = None
        superseded = ""
        if state.tracking_uri != self._tracking_uri or (attach and state.run_id != attach):
            if state.tracking_uri == self._tracking_uri:
                superseded = state.run_id
            self.state = state = MirrorState(pid=state.pid, error=state.error, gone=state.gone)
            state.rewinds = [0] * len(info["rewinds"])
        if state.run_id:
            target = self._sink.attach(state.run_id)
        elif attach:
            state.run_id = attach
            target = self._sink.attach(attach)
        else:
            target = self._sink.find(info["experiment"], info["id"]) or self._sink.create(
                info["experiment"],
                name=info["name"],
                start_time=round(1000 * info["created"]),
                tags={_RECORD_TAG: info["id"], **_context_tags(info)},
            )
        self._adopt(target)
        if superseded:
            self._supersede(superseded)
        if target.status != RUNNING and info["status"] == RUNNING and is_held(self.path):
            self._sink.set_status(state.run_id, RUNNING, None)
            state.status = RUNNING
        self._save()
        self._is_linked = True

    def _adopt(self, target: Target) -> None:
        state = self.state
        state.tracking_uri = self._tracking_uri
        state.experiment_id, state.run_id, state.url = target[:3]
        state.status = target.status
        state.params = {**target.params, **state.params}
        self._own_tags = {k for k in target.tags if k.startswith("mlflow.")}

    def _supersede(self, old: str) -> None:
        """The history goes on in another run of the server; the old one says so, and ends."""
        try:
            former = self._sink.attach(old)
            self._sink.set_tags(old, {"mlflow_track.superseded_by": self.state.run_id})
            if former.status == RUNNING:
                self._sink.set_status(old, KILLED, round(1000 * self._last_sign_of_life()))
        except Gone:
            pass
        self._sink.set_tags(self.state.run_id, {"mlflow_track.supersedes": old})

    def _forget(self) -> None:
        rewinds = [0] * len(self.state.rewinds)
        self.state = MirrorState(
            tracking_uri=self._tracking_uri,
            rewinds=rewinds,
            pid=self.state.pid,
            gone=[*self.state.gone, *([self.state.run_id] if self.state.run_id else [])],
        )
        self._repeated, self._repeated_of = {}, len(rewinds)
        self._is_linked = False
        self._save()

    # --- params, tags, datasets ---

    def _send_description(self, info: dict[str, Any]) -> None:
        state = self.state
        config = read_config(self.path)
        params = {k: _param_text(v) for k, v in flatten(config["params"]).items()}
        new = {k: v for k, v in params.items() if k not in state.params}
        if new:
            self._note_refused(self._sink.log_params(state.run_id, new))
            state.params |= new
            self._save()
        context = _context_tags(info)
        tags = {k: v for k, v in context.items() if k not in self._own_tags or k in state.tags}
        tags |= {_RECORD_TAG: info["id"], **info["tags"]}
        tags["mlflow_track.attempts"] = str(len(info["attempts"]))
        if config["changes"]:
            tags["mlflow_track.param_changes"] = json.dumps(config["changes"])
        if info["attempts"] and info["attempts"][-1].get("error"):
            tags["mlflow_track.error"] = info["attempts"][-1]["error"]
        if info["rewinds"]:
            tags["mlflow_track.rewinds"] = self._describe_rewinds(info)
        self._set_tags(tags)
        for description in info["inputs"][state.inputs :]:
            self._sink.log_input(state.run_id, description)
            state.inputs += 1
            self._save()

    def _set_tags(self, tags: Mapping[str, str]) -> None:
        changed = {k: v for k, v in tags.items() if self.state.tags.get(k) != v}
        if changed:
            self._note_refused(self._sink.set_tags(self.state.run_id, changed))
            self.state.tags |= changed
            self._save()

    def _describe_rewinds(self, info: dict[str, Any]) -> str:
        rewinds = [
            {"attempt": r["attempt"], "to_step": r["step"], "rows": r["rows"]}
            for r in info["rewinds"]
        ]
        return json.dumps({"rewinds": rewinds, "largest_difference": self.state.differences})

    # --- metrics ---

    def _send_metrics(self) -> bool:
        """Send rows piece by piece, about as many as a minute ships; whether none are left."""
        for _ in range(_MOST_PIECES):
            info = self._read_info()
            self._account_for_rewinds(info)
            piece = read_rows(self.path / "metrics.csv", self.state.position, _PIECE_BYTES)
            after = self._read_info()
            if after.get("rewinding") or len(after["rewinds"]) != len(info["rewinds"]):
                continue
            if piece.position == self.state.position:
                return True
            if self.state.sending < piece.position:
                self.state.sending = piece.position
                self._save()
            self._send_cells(self._cells(piece.rows))
            self.state.position = piece.position
            self._save()
        return False

    def _send_cells(self, cells: Iterator[Cell]) -> None:
        while batch := list(islice(cells, _BATCH)):
            self._note_refused(self._sink.log_metrics(self.state.run_id, batch))

    def _cells(self, rows: list[Row]) -> Iterator[Cell]:
        for row in rows:
            timestamp = round(1000 * row.time)
            for name, value in row.values.items():
                if (name, row.step) not in self._repeated:
                    yield Cell(self._name_at_server(name), value, timestamp, row.step)
                else:
                    self._compare(name, value, self._repeated[name, row.step])

    def _compare(self, name: str, value: float, former: float) -> None:
        """Note by how much an attempt differs from the one that it repeats."""
        is_same = value == former or (math.isnan(value) and math.isnan(former))
        difference = 0.0 if is_same else abs(value - former)
        if not difference <= self.state.differences.get(name, -1.0):
            self.state.differences[name] = difference

    def _name_at_server(self, name: str) -> str:
        if name in self.state.renamed:
            return self.state.renamed[name]
        legal = self._sink.legal_name(name)
        if legal != name:
            taken = set(self.state.renamed.values())
            number = 2
            while legal in taken:
                legal = f"{self._sink.legal_name(name)[:240]}-{number}"
                number += 1
            self.state.renamed[name] = legal
            self._set_tags({"mlflow_track.renamed": json.dumps(self.state.renamed)})
        return legal

    def _account_for_rewinds(self, info: dict[str, Any]) -> None:
        """Rows that a rewind took out and that the server has are not sent a second time."""
        for number, rewind in enumerate(info["rewinds"]):
            if number >= len(self.state.rewinds):
                self._account_for(rewind)
            if number >= self._repeated_of:
                self._remember(self.path / rewind["file"], self.state.rewinds[number])
                self._repeated_of += 1

    def _account_for(self, rewind: dict[str, Any]) -> None:
        state = self.state
        acknowledged = _bytes_before(state.position, rewind["removed"])
        begun = _bytes_before(max(state.position, state.sending), rewind["removed"])
        if begun > acknowledged:
            # The answer to these rows got lost. Sent again as they were, they are there once.
            piece = read_rows(self.path / rewind["file"], acknowledged, begun - acknowledged)
            self._send_cells(self._cells(piece.rows))
        state.position -= acknowledged
        state.sending = max(state.position, state.sending - begun)
        state.rewinds.append(begun)
        self._save()

    def _remember(self, aside: Path, size: int) -> None:
        """The rows in the first `size` bytes of `aside` are at the server."""
        position = 0
        while position < size:
            piece = read_rows(aside, position, min(1 << 20, size - position))
            for row in piece.rows:
                for name, value in row.values.items():
                    self._repeated.setdefault((name, row.step), value)
            if piece.position == position:
                break
            position = piece.position

    # --- files ---

    def _send_artifacts(self, *, is_at_end: bool) -> None:
        for file, name, stamp in pending_artifacts(self.path, self.state, is_at_end=is_at_end):
            try:
                self._sink.upload(self.state.run_id, file, name)
            except FileNotFoundError:
                continue
            except Refused as error:
                refused_items(self.state, [name], str(error))
            self.state.artifacts[name] = stamp
            self._save()

    def _send_checkpoints(self) -> None:
        state, root = self.state, self.path / "checkpoints"
        for checkpoint in pending_checkpoints(self.path, state):
            name = checkpoint.path.name
            try:
                files = sorted(p.name for p in checkpoint.path.iterdir() if p.name != _MANIFEST)
                for file in [*files, _MANIFEST]:
                    target = f"checkpoints/{name}/{file}"
                    self._sink.upload(state.run_id, checkpoint.path / file, target)
            except FileNotFoundError:
                # Retention was faster. What has arrived is no checkpoint: it lacks the manifest.
                self._remove_checkpoint(name)
                continue
            state.checkpoints.append(name)
            self._save()
        present = {checkpoint.name for checkpoint in root.glob("step-*")}
        for name in [n for n in state.checkpoints if n not in present]:
            if not list((root / "quarantine").glob(f"{name}*")):
                # A damaged checkpoint stays at the server: that copy may be whole.
                self._remove_checkpoint(name)
                state.checkpoints.remove(name)
                self._save()
        if state.checkpoints:
            self._set_tags({_LATEST_TAG: max(state.checkpoints, key=lambda n: int(n[5:]))})

    def _remove_checkpoint(self, name: str) -> None:
        try:
            self._sink.remove(self.state.run_id, f"checkpoints/{name}")
        except Refused as error:
            refused_items(self.state, [f"removal of checkpoints/{name}"], str(error))

    # --- inside ---

    def _read_info(self) -> dict[str, Any]:
        return read_json(self.path / "run.json")

    def _last_sign_of_life(self) -> float:
        times = [
            file.stat().st_mtime
            for file in (self.path / "metrics.csv", self.path / "run.json")
            if file.exists()
        ]
        return max(times)

    def _note_refused(self, refused: list[tuple[str, str]]) -> None:
        for item, why in refused:
            refused_items(self.state, [item], why)

    def _save(self) -> None:
        self.state.write(self.path)


def _context_tags(info: Mapping[str, Any]) -> dict[str, str]:
    """What MLflow's own client would say of user, source and commit."""
    provenance = info["provenance"]
    git = provenance.get("git") or {}
    tags = {
        "mlflow.user": provenance.get("user"),
        "mlflow.source.name": provenance.get("script"),
        "mlflow.source.type": "LOCAL" if provenance else None,
        "mlflow.source.git.commit": git.get("commit"),
        "mlflow.source.git.branch": git.get("branch"),
    }
    return {key: value for key, value in tags.items() if value}


def _bytes_before(position: int, ranges: list[list[int]]) -> int:
    """How many bytes of the ranges (begin, end) lie before `position`."""
    return sum(max(0, min(end, position) - begin) for begin, end in ranges)


def _param_text(value: Any) -> str:
    """A param as MLflow's own client writes it: `str` of the value."""
    return json.dumps(value) if isinstance(value, list | dict) else str(value)
