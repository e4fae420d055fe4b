"""Sends items in batches, and finds the one that a server does not take."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from mlflow import MlflowClient

from mlflow_track.backends.mlflow.errors import RefusedByStatus, SchemaTrouble, translated
from mlflow_track.backends.mlflow.values import Target
from mlflow_track.backends.protocol import Gone, Refused, Unavailable
from mlflow_track.record.tags import RECORD_TAG

# Errors at the same batch, before the server is asked whether it accepts anything else.
_MOST_ERRORS = 3
# Between attempts at what an HTTP status refuses: a gateway may have said so for the moment.
_PAUSE_SECONDS = 0.3
_Item = TypeVar("_Item")


class _Batch(NamedTuple):
    """Items that are sent at once.

    Attributes:
        is_suspect: Whether they are a part of what the server has failed at again and again.
        errors: The errors at this very batch.
    """

    items: Sequence[Any]
    is_suspect: bool = False
    errors: int = 0


class Batches:
    """Sends items to runs of a server; `attach` gives one, or raises Gone where it was deleted."""

    def __init__(self, client: MlflowClient, attach: Callable[[str], Target]) -> None:
        self._client = client
        self._attach = attach
        # How often a batch that begins with this item was answered with an error.
        self._failed: dict[str, int] = {}
        # Of each kind of a run what has arrived last, and how to send it again: what is there
        # does not come twice.
        self._taken: dict[tuple[str, str], Callable[[], object]] = {}
        # How many single items in a row were refused to the last attempt.
        self._refused = 0

    @contextlib.contextmanager
    def sending(self, run_id: str, kind: str = "") -> Iterator[None]:
        """A refusal may mean the whole run: then it is Gone; or all that is sent at this time."""
        try:
            with translated(missing=Gone, is_item=True):
                yield
        except RefusedByStatus:
            self._require_others(run_id, kind)
            raise
        except Refused:
            self._attach(run_id)
            raise

    def send_one(self, run_id: str, send: Callable[[], object]) -> None:
        """Send a single item.

        Raises:
            Refused: The server will never take it. A status that is not MLflow's own word is
                believed when it comes again, or where all items before were refused so as well.
        """
        for attempts in range(1, _MOST_ERRORS + 1):
            try:
                with self.sending(run_id):
                    send()
                self._refused = 0
                return
            except RefusedByStatus:
                if attempts == _MOST_ERRORS or self._refused >= _MOST_ERRORS:
                    self._refused += 1
                    raise
                time.sleep(_PAUSE_SECONDS)

    def send(
        self,
        run_id: str,
        kind: str,
        items: Sequence[_Item],
        most: int,
        send: Callable[[Sequence[_Item]], None],
    ) -> list[tuple[_Item, str]]:
        """Send in batches. One bad item rejects its batch: then halves find it.

        A server may also report it as an internal error. Where such an error comes again for
        the same batch, and the server takes something else in between, the batch is to blame.

        Args:
            run_id: The run.
            kind: "metrics", "params" or "tags".
            items: The items.
            most: How many one batch may have.
            send: Sends a batch.

        Returns:
            The items that the server will never take, and why.
        """
        refused: list[tuple[_Item, str]] = []
        left = [_Batch(items[at : at + most]) for at in range(0, len(items), most)]
        while left:
            batch = left.pop(0)
            try:
                with self.sending(run_id, kind):
                    send(batch.items)
                self._failed.pop(repr(batch.items[0]), None)
                self._taken[run_id, kind] = functools.partial(send, batch.items[:1])
                continue
            except Refused as error:
                why, by_error = str(error), isinstance(error, RefusedByStatus)
            except Unavailable as error:
                is_answer = error.is_answer and not isinstance(error, SchemaTrouble)
                if not is_answer or not self._is_to_blame(run_id, kind, batch):
                    raise
                why, by_error = str(error), True
            if len(batch.items) > 1:
                middle = len(batch.items) // 2
                halves = (batch.items[:middle], batch.items[middle:])
                left[:0] = [
                    _Batch(half, is_suspect=batch.is_suspect or by_error) for half in halves
                ]
            elif not by_error or batch.errors + 1 >= _MOST_ERRORS:
                refused.append((batch.items[0], why))
            else:
                left.insert(0, batch._replace(errors=batch.errors + 1, is_suspect=True))
        return refused

    def _is_to_blame(self, run_id: str, kind: str, batch: _Batch) -> bool:
        """Whether the server fails at a batch; raises `Unavailable` where it does at everything."""
        first = repr(batch.items[0])
        self._failed[first] = self._failed.get(first, 0) + 1
        if self._failed[first] < _MOST_ERRORS and not batch.is_suspect:
            return False
        self._require_others(run_id, kind)
        return True

    def _require_others(self, run_id: str, kind: str = "") -> None:
        """Return where the server takes something else now: then it is the item that it refuses.

        Of the same kind, if possible: a table that is being migrated takes nothing. Otherwise it
        raises `Unavailable`, or `Gone` where the run was deleted.
        """
        tags = self._attach(run_id).tags
        if RECORD_TAG in tags:
            with translated(missing=Gone):
                self._client.set_tag(run_id, RECORD_TAG, tags[RECORD_TAG])
        if (run_id, kind) in self._taken:
            with translated(missing=Gone):
                self._taken[run_id, kind]()
