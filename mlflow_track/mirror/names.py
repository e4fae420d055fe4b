"""What a name is called at the server, where the server does not take it as it is."""

from __future__ import annotations

from collections.abc import Iterable

from mlflow_track.mirror.ledger import Ledger

_MOST_BASE = 240


def name_at_server(ledger: Ledger, kind: str, name: str, others: Iterable[str]) -> str:
    """The nearest legal name that no other name of the kind has.

    Args:
        ledger: Keeps what was renamed, so that a name is called the same for ever.
        kind: "metrics", "params" or "tags".
        name: As it is in the record.
        others: The names of the kind that the record has.
    """
    renamed = ledger.state.renamed.setdefault(kind, {})
    if name in renamed:
        return renamed[name]
    legal = ledger.sink.legal_name(name)
    taken = set(renamed.values())
    if legal == name and name not in taken:
        return name
    taken |= {other for other in others if other != name}
    candidate, number = legal, 2
    while candidate in taken:
        candidate = ledger.sink.legal_name(f"{legal[:_MOST_BASE]}-{number}")
        number += 1
    renamed[name] = candidate
    ledger.save()
    return candidate
