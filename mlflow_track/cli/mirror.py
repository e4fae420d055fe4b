"""Commands about the mirror: send records to an MLflow server."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from mlflow_track.cli.select import runs_at


@click.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--tracking-uri", help="The server; else MLFLOW_TRACKING_URI, else the run's own.")
def sync(paths: tuple[Path, ...], tracking_uri: str | None) -> None:
    """Send to an MLflow server what it lacks of the runs in PATHS (folders of runs, or of one).

    May be repeated at any time: what the server has is not sent twice.

    Example: mlflow-track sync runs --tracking-uri http://127.0.0.1:5000
    """
    from mlflow_track.mirror.process import AlreadyMirrored, open_mlflow, sync_run
    from mlflow_track.mirror.sink import Unavailable
    from mlflow_track.settings import read_settings

    failed = False
    for path in paths:
        for run in runs_at(path):
            own = (run.info.get("mirror") or {}).get("tracking_uri") or ""
            uri = tracking_uri or ("" if "***" in own else own) or None
            uri = read_settings(backend="mlflow", tracking_uri=uri).tracking_uri
            try:
                click.echo(f"{run.id}: {sync_run(run.path.absolute(), str(uri), open_mlflow)}")
            except (AlreadyMirrored, Unavailable) as error:
                click.echo(f"{run.id}: {error}", err=True)
                failed = True
    sys.exit(failed)
