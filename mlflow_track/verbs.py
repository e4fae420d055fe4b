"""The verbs of a run beside metrics: params, tags, datasets, a summary, files, log lines."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_track import checks
from mlflow_track.attempt import Attempt
from mlflow_track.media.histograms import histogram_of
from mlflow_track.media.images import figure_of, image_of
from mlflow_track.media.values import text_of
from mlflow_track.param_values import plain_params
from mlflow_track.wording import type_error, typed

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
            TypeError, ValueError: An argument is invalid, or contradicts a policy of the run.
        """
        claim = checks.metric_definition(name, mode)
        self._attempt.open_record()
        self._attempt.directions.settle(f"define_metric {name}", [claim])

    def log_params(self, params: Any) -> None:
        """Add params. A value that changes is recorded as a change.

        Args:
            params: A mapping, a dataclass or another configuration object, with values of any kind
                that has a text (docs/logging.md).

        Raises:
            TypeError: A value has no faithful text; the message names its path.
            ValueError: Two params have the same name, or one is too large, is nested too deep,
                contains itself or cannot be read; the message names its path.
        """
        self._attempt.add_params(plain_params(params), is_start=False)

    def log_param(self, key: str, value: Any) -> None:
        """Add one param.

        Args:
            key: Its name.
            value: Its value; see `log_params`.

        Raises:
            TypeError, ValueError: `key` is not a string, or the value has no faithful text, or is
                too large.
        """
        if not isinstance(key, str):
            raise type_error("a param's name", "a string", typed(key))
        self.log_params({key: value})

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags.

        Args:
            tags: Values by name; they become strings.

        Raises:
            TypeError, ValueError: `tags` is not a mapping, a name is empty, or a value has no text.
        """
        self._attempt.open_record().set_tags(checks.tags(tags))

    def set_tag(self, key: str, value: str) -> None:
        """Set one tag.

        Args:
            key: Its name.
            value: Its value, which becomes a string.

        Raises:
            TypeError, ValueError: The name is empty, or the value has no text.
        """
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
        """Record a dataset that the run reads; MLflow shows it as the run's dataset.

        Args:
            name: The dataset's name.
            sha256: The digest of its content: a resume compares it.
            size_bytes: Its size.
            source: Its origin: a path or an address.
            context: Its purpose in the run.

        Raises:
            TypeError: `size_bytes` is not an integer, or another argument is not a string.
        """
        item = checks.input_description(name, sha256, size_bytes, source, context)
        record = self._attempt.open_record()
        record.add("inputs", item, once=True)
        record.note_in_attempt(data={**record.info.newest.data, item["name"]: item["sha256"]})

    def print(self, message: str, *, is_shown: bool = True) -> None:
        """Write a line to training.log and, unless `is_shown` is False, to stderr.

        Args:
            message: The text; each of its lines is one in the log.
            is_shown: Whether it goes to the console as well.

        Raises:
            RuntimeError: The run has ended, or this process was forked from the one that writes it.
        """
        self._attempt.open_record()
        self._attempt.print(message, is_shown=is_shown)

    # --- files ---

    def log_artifact(
        self, local_path: str | os.PathLike[str], artifact_path: str | None = None
    ) -> Path:
        """Copy a file, or a folder with its content, to the artifacts.

        Links are followed. Of a folder around the runs everything but the runs is copied; a
        warning names what else is left out: pipes, sockets, links to nothing, links in a circle.

        Args:
            local_path: The file or folder.
            artifact_path: The folder inside the artifacts; None is the top.

        Returns:
            Its path in the run's folder.

        Raises:
            FileNotFoundError: `local_path` does not exist.
            ValueError: `artifact_path` would leave the artifacts.
        """
        return self._attempt.artifacts.copy(local_path, artifact_path)

    def log_artifacts(
        self, local_dir: str | os.PathLike[str], artifact_path: str | None = None
    ) -> None:
        """Copy the content of a folder to the artifacts; see `log_artifact`.

        Args:
            local_dir: The folder.
            artifact_path: The folder inside the artifacts; None is the top.

        Raises:
            NotADirectoryError: `local_dir` is not a folder.
            ValueError: `artifact_path` would leave the artifacts.
        """
        self._attempt.artifacts.copy_content(local_dir, artifact_path)

    def log_text(self, text: str, artifact_file: str, *, step: int | None = None) -> Path:
        """Write a text as an artifact, or as one of a series over steps.

        Args:
            text: The text.
            artifact_file: The file's name inside the artifacts; with a step see `log_image`. The
                ending of a text of a step is .txt, .md or .html, .txt without one.
            step: See `log_image`.

        Returns:
            Its path in the run's folder.

        Raises:
            TypeError: `text` is not a string.
            ValueError: `artifact_file` would leave the artifacts.
        """
        if step is None:
            return self._attempt.artifacts.write_text(text, artifact_file)
        return self._attempt.media.log(
            "text", artifact_file, step, lambda name: text_of(text, name)
        )

    def log_dict(self, content: Any, artifact_file: str) -> Path:
        """Write JSON-serialisable content as an artifact.

        Args:
            content: Anything that `json.dumps` accepts; arrays and tensors in it become lists,
                dates and paths text.
            artifact_file: The file's name inside the artifacts.

        Returns:
            Its path in the run's folder.

        Raises:
            TypeError: The content is not serialisable as JSON.
            ValueError: `artifact_file` would leave the artifacts.
        """
        return self._attempt.artifacts.write_json(content, artifact_file)

    def log_figure(self, figure: Any, artifact_file: str, *, step: int | None = None) -> Path:
        """Draw a matplotlib figure into an artifact, during the call.

        Args:
            figure: A matplotlib figure.
            artifact_file: The file's name inside the artifacts; its ending is the format: png, svg,
                pdf. With a step see `log_image`.
            step: See `log_image`.

        Returns:
            Its path in the run's folder.

        Raises:
            TypeError: It is not a figure.
            ValueError: `artifact_file` would leave the artifacts.
        """
        if step is None:
            return self._attempt.artifacts.write_figure(figure, artifact_file)
        return self._attempt.media.log(
            "image", artifact_file, step, lambda name: figure_of(figure, name)
        )

    def log_image(self, image: Any, artifact_file: str, *, step: int | None = None) -> Path:
        """Write an image as an artifact, or as one of a series over steps.

        With a step the call copies the image and returns; a thread writes the file, and a file that
        cannot be written is a warning. A tensor on a CUDA device is not waited for.

        Args:
            image: A PIL image; or an array or tensor with rows, columns and 1, 3 or 4 channels
                (first or last), of integers from 0 to 255, floats from 0 to 1, or booleans.
            artifact_file: The file's name inside the artifacts. It ends in .png; that of a PIL
                image may have another ending that PIL writes. With a step it is the name of the
                series, with or without .png: the file is `<name>/step-<step>.png`.
            step: The step that it belongs to; None for an artifact as such.

        Returns:
            Its path in the run's folder; with a step the file is there soon.

        Raises:
            TypeError: It is not an image.
            ValueError: Its shape or its numbers are not those of an image, `artifact_file` has
                a different ending, or would leave the artifacts.
        """
        if step is None:
            return self._attempt.artifacts.write_image(image, artifact_file)
        return self._attempt.media.log(
            "image", artifact_file, step, lambda name: image_of(image, name)
        )

    def log_histogram(self, key: str, values: Any, *, step: int, bins: int = 64) -> Path:
        """Count the values of a step in bins of the same width; see `log_image` for the file.

        Args:
            key: The histogram's name.
            values: An array, a tensor or a list of numbers, of any shape. NaN and infinities are
                counted beside the bins.
            step: The step that it belongs to.
            bins: The number of bins, from the smallest finite value to the largest.

        Returns:
            The path of its JSON in the run's folder; the file is there soon.

        Raises:
            TypeError: `values` are not numbers, or `bins` or `step` is not an integer.
            ValueError: There are no values, `bins` is not from 1 to 4096, or `key` would leave the
                artifacts.
        """
        return self._attempt.media.log(
            "histogram", key, step, lambda name: histogram_of(values, bins, name)
        )

    def log_table(self, data: Any, artifact_file: str) -> Path:
        """Write a table as an artifact.

        Args:
            data: A DataFrame, or a mapping of columns of the same length: lists, arrays, tensors.
            artifact_file: The file's name inside the artifacts. It ends in .csv or .json.

        Returns:
            Its path in the run's folder.

        Raises:
            TypeError: It is not a table.
            ValueError: `artifact_file` would leave the artifacts or has a different ending, or
                columns differ in length.
        """
        return self._attempt.artifacts.write_table(data, artifact_file)
