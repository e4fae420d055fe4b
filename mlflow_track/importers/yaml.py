"""Reads YAML that another program wrote: plain data, whatever Python objects it names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlflow_track.record.files import read_file

_MOST_BYTES = 1 << 20


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; tagged objects become what they were made of, or their names.

    Raises:
        OSError: It is not a regular file.
        ValueError: It is not YAML, too large, or PyYAML is not installed; the message says so.
    """
    data = read_file(path, _MOST_BYTES)
    try:
        import yaml
    except ImportError:
        raise ValueError(f"{path.name} needs PyYAML: pip install PyYAML") from None

    class Loader(yaml.SafeLoader):
        """Makes nothing but plain data."""

    def plain(loader: yaml.SafeLoader, suffix: str, node: yaml.Node) -> Any:
        if isinstance(node, yaml.MappingNode):
            return loader.construct_mapping(node, deep=True)
        if isinstance(node, yaml.SequenceNode):
            return loader.construct_sequence(node, deep=True)
        # Of a class or a function the name is all there is.
        return loader.construct_scalar(node) or suffix.rpartition(":")[2]  # type: ignore[arg-type]

    Loader.add_multi_constructor("", plain)
    try:
        content = yaml.load(data, Loader)
    except (yaml.YAMLError, RecursionError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path.name} is damaged: {' '.join(str(error).split())}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} holds {type(content).__name__}, not params by name")
    return content
