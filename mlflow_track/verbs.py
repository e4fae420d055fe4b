"""What a run takes beside metrics: params, tags, datasets, a summary, files, lines for its log."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_track import checks
from mlflow_track.attempt import Attempt

if TYPE_CHECKING:
    import logging


class RecordVerbs:
    """Checks and converts once, and writes to the record; names and arguments are MLflow's."""

    _attempt: Attempt

    def define_metric(self, name: str, *, mode: str) -> None:
        """Record which direction of a metric is better, for the run's policies and its readers.

        Args:
            name: The metric's name.
            mode: "min", "max", or "none" where no value is better than another.

        Raises:
            TypeError, ValueError: An argument is invalid, or a policy of the run says otherwise.
        """
        claim = checks.metric_definition(name, mode)
        self._attempt.open_record()
        self._attempt.directions.settle(f"define_metric {name}", [claim])

    def log_params(self, params: Any) -> None:
        """Add params: a mapping or dataclass, nested allowed. A changed value is recorded as such.

        Raises:
            TypeError: A value is not serialisable; the message names its path.
        """
        self._attempt.add_params(checks.params(params), is_start=False)

    def log_param(self, key: str, value: Any) -> None:
        """Add one param; see `log_params`."""
        self.log_params({key: value})

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags; values become strings."""
        self._attempt.open_record().set_tags(checks.tags(tags))

    def set_tag(self, key: str, value: str) -> None:
        """Set one tag; see `set_tags`."""
        self.set_tags({key: value})

    def log_summary(self, values: Mapping[str, Any]) -> None:
        """Record values that stand for the whole run, like a final accuracy; later ones replace.

        Args:
            values: Numbers (also NumPy's, and tensors of one element), strings or booleans by name.

        Raises:
            TypeError, ValueError: A name or a value is invalid; the message names it.
            RuntimeError: The run has ended, or this process was forked from the one that writes it.
        """
        checked = checks.summary(values)
        self._attempt.open_record().restate("summary", checked)

    def log_handler(self) -> logging.Handler:
        """A handler for Python's `logging` that writes to training.log, until the run ends.

            logging.getLogger().addHandler(run.log_handler())

        Raises:
            RuntimeError: The run has ended, or this process was forked from the one that writes it.
        """
        return self._attempt.open_log_handler()

    def log_input(
        self,
        name: str,
        *,
        sha256: str,
        size_bytes: int,
        source: str = "",
        context: str = "training",
    ) -> None:
        """Note a dataset that the run reads; MLflow shows it as the run's dataset.

        Raises:
            TypeError: `size_bytes` is no integer, or another argument no string.
        """
        item = checks.input_description(name, sha256, size_bytes, source, context)
        self._attempt.open_record().add("inputs", item, once=True)

    def print(self, message: str, *, is_shown: bool = True) -> None:
        """Say one line in training.log and, unless something else shows it there, on the console.

        The console is stderr.
        """
        self._attempt.print(message, is_shown=is_shown)

    # --- files ---

    def log_artifact(
        self, local_path: str | os.PathLike[str], artifact_path: str | None = None
    ) -> Path:
        """Copy a file, or a folder with all in it, to the artifacts, below `artifact_path`.

        Raises:
            FileNotFoundError: There is nothing at `local_path`.
            ValueError: `artifact_path` would leave the artifacts.
        """
        return self._attempt.open_artifacts().copy(local_path, artifact_path)

    def log_artifacts(
        self, local_dir: str | os.PathLike[str], artifact_path: str | None = None
    ) -> None:
        """Copy what a folder holds to the artifacts."""
        self._attempt.open_artifacts().copy_content(local_dir, artifact_path)

    def log_text(self, text: str, artifact_file: str) -> Path:
        """Write a text as an artifact."""
        return self._attempt.open_artifacts().write_text(text, artifact_file)

    def log_dict(self, content: Any, artifact_file: str) -> Path:
        """Write JSON-serialisable content as an artifact."""
        return self._attempt.open_artifacts().write_json(content, artifact_file)

    def log_figure(self, figure: Any, artifact_file: str) -> Path:
        """Draw a matplotlib figure into an artifact; its ending says how (png, svg, pdf)."""
        return self._attempt.open_artifacts().write_figure(figure, artifact_file)

    def log_table(self, data: Any, artifact_file: str) -> Path:
        """Write a table as an artifact, `.csv` or `.json`: a mapping of columns, or a DataFrame."""
        return self._attempt.open_artifacts().write_table(data, artifact_file)
