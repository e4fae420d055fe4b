"""Says whether the run continues exactly, in the log and in run.json, as soon as that is known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlflow_track.checkpoint.exact.continuation import Continuation
from mlflow_track.checkpoint.exact.objects import mode_of
from mlflow_track.checkpoint.exact.report import Report
from mlflow_track.checkpoint.session import Session

# Steps at which a process looks at its models; later it does at a save and at the step behind.
_FIRST_STEPS = 8


class Verdict:
    """Reports on the newest restore: after it, and at the first steps.

    Attributes:
        report: The newest report; None where nothing was restored, and on ranks other than 0.
    """

    def __init__(self, session: Session) -> None:
        self._record, self._announce = session.record, session.announce
        self._fingerprints, self._unseen = session.fingerprints, _FIRST_STEPS
        self._continuation: Continuation | None = None
        self._is_unsaid = False
        self.report: Report | None = None

    def begin(self, continuation: Continuation | None, *, generators: bool) -> None:
        """After a restore; without its generators the report waits for them."""
        self._continuation, self._is_unsaid = continuation, not generators
        self.report = None if continuation is None else continuation.report
        if generators:
            self._say()

    def end_generators(self) -> None:
        """Once the generators have been put back."""
        if self._continuation is not None and self._is_unsaid:
            self._is_unsaid, self.report = False, self._continuation.report
            self._say()

    def at_step(self) -> None:
        """Report a restore without its generators, which nobody has put back."""
        if self._is_unsaid and self._continuation is not None:
            words = "the random generators were not restored"
            self._continuation.end_generators(words, are_restored=False)
            self.end_generators()

    def look(self, step: int, state: Mapping[str, Any], verb: str, *, is_saving: bool) -> None:
        """Compare once more with the checkpoint that is continued, at the first steps."""
        if is_saving or self._unseen:
            # Reading a flag of each model at every step would cost as much as all the rest.
            self._fingerprints.note_modes(mode_of(state))
            self._unseen = max(self._unseen - 1, 1 if is_saving else 0)
        continuation = self._continuation
        if continuation is None or continuation.is_settled:
            return
        report = continuation.look(state, verb, is_saving=is_saving)
        if report is not None:
            self.report = report
            self._announce(f"at step {step}, continued from step {report.step}: {report.verdict}")
            self._note(report, is_correction=True)

    def _say(self) -> None:
        if self.report is not None:
            self._announce(str(self.report))
            self._note(self.report)

    def _note(self, report: Report, *, is_correction: bool = False) -> None:
        entry = {"attempt": self._record.attempt, **report.to_json()}
        self._record.add("restores", entry, is_correction=is_correction)
