"""Packages that only some parts need, and the extras that bring them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from importlib.util import find_spec


class MissingExtra(ModuleNotFoundError):
    """A package is not installed; the message has the command that installs it."""


@contextlib.contextmanager
def extra(name: str) -> Iterator[None]:
    """Import what the extra `name` brings inside of this.

    Raises:
        MissingExtra: It is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise _missing(error.name or "a package", name) from None


def require_extra(name: str, *modules: str) -> None:
    """Raise `MissingExtra` where one of the modules is not installed; nothing is imported."""
    for module in modules:
        if find_spec(module) is None:
            raise _missing(module, name)


def _missing(module: str, name: str) -> MissingExtra:
    install = f'pip install "mlflow-track[{name}]"'
    return MissingExtra(f"{module.partition('.')[0]} is not installed: {install}")
