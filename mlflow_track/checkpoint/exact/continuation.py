"""Follows a restored run to its first step: is what surrounds the state as it was at the save?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from msgspec import structs

from mlflow_track.checkpoint.disk.store import Checkpoint
from mlflow_track.checkpoint.exact import comparison, fingerprint
from mlflow_track.checkpoint.exact.changed_params import changed_params, differing
from mlflow_track.checkpoint.exact.fingerprint import Facts
from mlflow_track.checkpoint.exact.given import given_by_code
from mlflow_track.checkpoint.exact.objects import mode_of
from mlflow_track.checkpoint.exact.replaced import (
    Replaced,
    moved_at_once,
    put_back,
    replaced_settings,
    settings_of,
)
from mlflow_track.checkpoint.exact.report import Findings, Report
from mlflow_track.checkpoint.exact.reproducibility import (
    differences_of_classes,
    differences_of_surroundings,
    surroundings,
)
from mlflow_track.checkpoint.session import Session
from mlflow_track.record.params import flatten


class Continuation:
    """Compares a run with the checkpoint that it continues, at the restore and at its first step.

    A loop sets some things only at the top of a step, and names its data late. What differs at the
    restore is compared again there; training flags and autocast only there, by the method that
    made the checkpoint: the same place of the loop.

    Args:
        found: What has not arrived from it.
        restored: The names of the restored entries.

    Attributes:
        report: The newest report.
        is_settled: Whether nothing is left to compare.
    """

    def __init__(
        self, session: Session, checkpoint: Checkpoint, found: Findings, restored: tuple[str, ...]
    ) -> None:
        self._session, self._manifest = session, checkpoint.manifest
        self._content = checkpoint.content
        self._then = fingerprint.unpacked(self._manifest.fingerprint)
        session.fingerprints.note_modes(*(self._then.modes if self._then else ()))
        self._base = Report(step=checkpoint.step, restored=restored).with_findings(found)
        if self._manifest.iterates_loader:
            words = "a DataLoader was iterating and is not in the state"
            self._base = self._base.with_findings(Findings(unknown=[words]))
        self._replaced: list[Replaced] = []
        self._used: dict[str, Any] = {}
        self.is_settled = False
        self._is_first = True
        # Only steps with these models in training mode can be compared with that of the save.
        self._awaits = ""
        self._loaded = Facts()
        self._given = Findings()
        self.report = self._base

    def compare(self, state: Mapping[str, Any], code: Mapping[str, Any]) -> Report:
        """The report right after the load.

        Args:
            code: The settings that the code gave them before it.
        """
        then = None if self._then is None else self._then.settings
        self._used = settings_of(state)
        self._replaced = replaced_settings(then, code, self._used)
        self._loaded = self._session.fingerprints.take(state)
        self._given = comparison.differences_of_given(
            self._then, self._loaded, given_by_code(state)
        )
        self.report = self._compared(state, self._loaded)
        return self.report

    def end_generators(self, *lost: str, are_restored: bool = True) -> Report:
        """The report once it is known what became of the random generators."""
        names = self._base.restored
        if are_restored:
            names = (*names, "random generators")
        self._base = replace(self._base, restored=names).with_difference(*lost)
        self.report = replace(self.report, restored=names).with_difference(*lost)
        return self.report

    def look(self, state: Mapping[str, Any], verb: str, *, is_saving: bool) -> Report | None:
        """Compare again at the first steps; the report where it is another one than before.

        Args:
            verb: The method that the loop has called.
            is_saving: Whether a checkpoint is made here.
        """
        is_same_place = self._then is None or self._then.verb in ("", verb)
        if not (self._is_first or is_same_place):
            return None
        if self._awaits and self._awaits != mode_of(state):
            return None
        self._is_first = False
        now = self._session.fingerprints.take(state, verb)
        report = self._compared(state, self._with_what_moves(now))
        settings = settings_of(state)
        report = report.with_difference(*put_back(self._replaced, settings))
        if self._then is not None:
            moved = moved_at_once(self._then.settings, self._used, settings)
            report = report.with_findings(Findings(unknown=moved))
        flags: list[str] = []
        if self._then is not None and is_same_place:
            flags = comparison.differences_of_place(self._then, now, state)
            if is_saving and flags and comparison.is_of_another_kind(self._then, now):
                self._awaits, is_saving = self._then.mode, False
        if is_saving:
            report = report.with_difference(*flags)
        elif flags:
            report = report.with_findings(Findings(unknown=[f"{w} so far" for w in flags]))
        self.is_settled = is_same_place and (is_saving or not flags)
        is_news = report.verdict != self.report.verdict
        self.report = report
        return report if is_news else None

    def _with_what_moves(self, now: Facts) -> Facts:
        """The facts here; for what a step changes, those from before the first step."""
        then, loaded = self._then or Facts(), self._loaded
        moving = {p: v for p, v in loaded.attributes.items() if p in then.changing}
        return structs.replace(
            now,
            attributes={**now.attributes, **moving},
            buffers=loaded.buffers,
            metrics=loaded.metrics,
        )

    def _compared(self, state: Mapping[str, Any], now: Facts) -> Report:
        session, manifest = self._session, self._manifest
        around = surroundings(state, session)
        differences = differences_of_surroundings(self._content, around)
        if self._then is None:
            differences += differences_of_classes(self._content, around)
            facts = Findings()
        else:
            facts = comparison.differences(self._then, now, state)
        # Data that this attempt has not named is not necessarily other data.
        named = session.record.info.newest.data
        then = {f"data.{k}": v for k, v in manifest.data.items() if k in named}
        differences += differing(then, {f"data.{k}": v for k, v in named.items()})
        params = changed_params(
            manifest.params,
            flatten(session.record.read_params()),
            allow_changed=session.policies.allow_changed,
            replaced=self._replaced,
        )
        base = self._base
        return replace(
            base,
            differences=(*differences, *facts.differences, *base.differences),
            unknown=(*params.unknown, *facts.unknown, *self._given.unknown, *base.unknown),
            may_matter=(*params.may_matter, *facts.may_matter, *self._given.may_matter),
            replaced=(*map(str, self._replaced), *params.replaced),
            free=params.free,
        )
