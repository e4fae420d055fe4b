"""What a command prints with --json, checked against its schema in docs/schemas."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from mlflow_track.cli import output

SCHEMAS = Path(__file__).resolve().parents[2] / "docs" / "schemas"


def schema_of(command: str) -> dict[str, Any]:
    return json.loads((SCHEMAS / f"{command.replace(' ', '-')}.json").read_text())


def closed(schema: Any, is_part: bool = False) -> Any:
    """The schema, but refusing what it does not name: programs must not rely on that."""
    if not isinstance(schema, dict):
        return schema
    found = {
        key: {name: closed(inner, key == "$defs") for name, inner in value.items()}
        if key in ("properties", "$defs")
        else [closed(inner, key == "allOf") for inner in value]
        if key in ("anyOf", "oneOf", "allOf")
        else closed(value)
        for key, value in schema.items()
    }
    if not is_part and {"properties", "$ref", "allOf"} & found.keys():
        found["unevaluatedProperties"] = False
    return found


REGISTRY: Registry = Registry().with_resources(
    (path.name, Resource(closed(json.loads(path.read_text())), DRAFT202012))
    for path in SCHEMAS.glob("*.json")
)


def check(document: Any, command: str) -> None:
    """
    Raises:
        ValidationError: The document is not what the schema of the command says.
    """
    Draft202012Validator(closed(schema_of(command)), registry=REGISTRY).validate(document)


def strict(text: str) -> Any:
    """One document of JSON: no words around it, no NaN, and nothing that a terminal obeys."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    assert output.escaped(text) == text
    return json.loads(text, parse_constant=refuse)
