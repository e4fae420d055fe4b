"""A record in MLflow's words: experiments, runs, metrics, datasets."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from mlflow.entities import (
    Dataset,
    DatasetInput,
    Experiment,
    ExperimentTag,
    InputTag,
    LifecycleStage,
    Metric,
    Param,
    Run,
    RunData,
    RunInfo,
    RunInputs,
    RunOutputs,
    RunTag,
)

from mlflow_track.analysis.aggregates import MetricSummary
from mlflow_track.analysis.compare import best, judged
from mlflow_track.analysis.summary import Summary
from mlflow_track.checkpoint.disk.store import CheckpointStore
from mlflow_track.record import layout
from mlflow_track.record.info import last_sign_of_life, read_config
from mlflow_track.record.params import param_text
from mlflow_track.record.schema import RUNNING, Config, Input
from mlflow_track.record.tags import LATEST_CHECKPOINT_TAG, context_tags, record_tags
from mlflow_track.ui.address import experiment_id_of, uri_of

PROBLEMS_TAG = "mlflow_track.problems"
# The limits of MLflow's SQL stores, and their substitute for an infinity.
_MOST_PARAM_VALUE, _MOST_TAG_VALUE, _MOST_DIGEST = 6000, 8000, 36
_LARGEST = 1.7976931348623157e308


def experiment_of(root: Path, runs: list[Summary]) -> Experiment:
    """The experiment that all of `runs` belong to."""
    name = runs[0].experiment
    return Experiment(
        experiment_id=experiment_id_of(name),
        name=name,
        artifact_location=uri_of(root),
        lifecycle_stage=LifecycleStage.ACTIVE,
        # Without it the page asks what kind of experiment this is, and would write the answer.
        tags=[ExperimentTag("mlflow.experimentKind", "custom_model_development")],
        creation_time=_milliseconds(min(run.created for run in runs)),
        last_update_time=_milliseconds(max(run.created + run.wall_seconds for run in runs)),
    )


def run_of(summary: Summary) -> Run:
    """A run with its params, tags, latest and best metrics, and datasets."""
    tags, is_running = _tags(summary), summary.status == RUNNING
    ended = None if is_running else last_sign_of_life(summary.path, summary.info)
    info = RunInfo(
        run_id=summary.id,
        experiment_id=experiment_id_of(summary.experiment),
        user_id=tags.get("mlflow.user", "unknown"),
        status=summary.status,
        start_time=_milliseconds(summary.created),
        end_time=None if ended is None else _milliseconds(ended),
        lifecycle_stage=LifecycleStage.ACTIVE,
        artifact_uri=uri_of(summary.path),
        run_name=summary.name,
    )
    params = {name: param_text(value) for name, value in summary.params.items()}
    data = RunData(
        metrics=[
            *_last_values(summary.metrics),
            *filter(None, (best_of(summary, name) for name in summary.metrics)),
            *_last_values(summary.system_metrics),
        ],
        params=[Param(name, text[:_MOST_PARAM_VALUE]) for name, text in params.items()],
        tags=[RunTag(name, text[:_MOST_TAG_VALUE]) for name, text in tags.items()],
    )
    inputs = [_dataset(item) for item in summary.info.inputs]
    return Run(info, data, RunInputs(dataset_inputs=inputs), RunOutputs(model_outputs=[]))


def metrics_of(
    name: str, steps: Iterable[int], times: Iterable[float], values: Iterable[float]
) -> Iterator[Metric]:
    """Points of one metric."""
    for step, time, value in zip(steps, times, values, strict=True):
        yield Metric(name, _storable(value), _milliseconds(time), step)


def best_of(run: Summary, name: str) -> Metric | None:
    """The best value as a separate metric, `<metric> min` or `<metric> max`.

    None where it is not known which direction is better, and where there is no finite value.
    """
    direction = judged(name, [run]).direction
    reached = best(run, name, direction)
    if reached is None:
        return None
    time = _milliseconds(run.metrics[name].last_time)
    # Of metrics that have no step but 0 the UI draws bars, side by side, and lines of others.
    return Metric(f"{name} {direction}", reached[0], time, 0)


def _last_values(summaries: dict[str, MetricSummary]) -> Iterator[Metric]:
    for name, summary in summaries.items():
        if summary.count:
            time = _milliseconds(summary.last_time)
            yield Metric(name, _storable(summary.last), time, summary.last_step)


def _tags(summary: Summary) -> dict[str, str]:
    try:
        config = read_config(summary.path)
    except (OSError, ValueError):
        config = Config()
    tags = context_tags(summary.info) | summary.tags
    tags |= record_tags(summary.info, config)
    tags.setdefault("mlflow.runName", summary.name)
    checkpoints = CheckpointStore(summary.path / layout.CHECKPOINTS).list()
    if checkpoints:
        tags[LATEST_CHECKPOINT_TAG] = checkpoints[-1].path.name
    if summary.problems:
        tags[PROBLEMS_TAG] = "; ".join(summary.problems)
    return {name: str(text) for name, text in tags.items()}


def _dataset(item: Input) -> DatasetInput:
    dataset = Dataset(
        name=item.name,
        digest=item.sha256[:_MOST_DIGEST],
        source_type="local",
        source=json.dumps({"uri": item.source}),
        profile=json.dumps({"size_bytes": item.size_bytes, "sha256": item.sha256}),
    )
    context = InputTag("mlflow.data.context", item.context or "training")
    return DatasetInput(dataset, [context])


def _milliseconds(seconds: float) -> int:
    return round(1000 * seconds)


def _storable(value: float) -> float:
    """Converts a value as MLflow's SQL stores do, so that filters and charts treat it alike."""
    return min(max(value, -_LARGEST), _LARGEST) if value == value else value
