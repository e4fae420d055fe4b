"""Names records for MLflow: URIs of folders, ids of experiments, pages of the UI."""

from __future__ import annotations

import hashlib
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from mlflow_track.wording import shown, value_error

SCHEME = "mlflow-track"


def uri_of(path: Path) -> str:
    """The folder `path` as a URI of this store."""
    return f"{SCHEME}://{quote(str(path.absolute()))}"


def path_of(uri: str) -> Path:
    """The folder that a URI names: `mlflow-track:///abs/path`, or `mlflow-track:relative/path`.

    Raises:
        ValueError: It names none.
    """
    parts = urlsplit(uri)
    path = unquote(parts.netloc + parts.path)
    if parts.scheme != SCHEME or not path:
        raise value_error("the address of runs", f"{SCHEME}:///absolute/path/of/runs", shown(uri))
    return Path(path).absolute()


def experiment_id_of(name: str) -> str:
    """A number, as MLflow's own ids are; the same in every process and for every folder."""
    return str(int(hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:12], 16))


def page_of(server: str, experiment: str) -> str:
    """The page of a server at `server` that compares the runs of an experiment by charts."""
    query = "workflowType=machine_learning&compareRunsMode=CHART"
    return f"{server}/#/experiments/{experiment_id_of(experiment)}/runs?{query}"
