"""The command that shows runs in MLflow's own UI."""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType

import click

from mlflow_track.cli import exit_codes
from mlflow_track.cli.output import echo, echo_skipped, json_option, print_json
from mlflow_track.cli.select import default_root, require_runs
from mlflow_track.wording import count_text


@click.command()
@click.argument("root", type=click.Path(path_type=Path), default=default_root)
@click.option("--port", default=0, help="The port on 127.0.0.1; without it, a free one.")
@click.option("--no-browser", is_flag=True, help="Print the address without opening a browser.")
@json_option
def ui(root: Path, port: int, no_browser: bool, as_json: bool) -> None:
    """Show the runs under ROOT in the MLflow UI, without importing them anywhere.

    ROOT is MLFLOW_TRACK_DIR, else runs, where none is given. The page shows the records as they
    are at that moment, also while they grow, and opens on the comparison of the newest experiment.
    Nothing can be changed from it. Ctrl-C ends it.

    \b
    Example:
      mlflow-track ui runs --port 5000 --no-browser
    """
    from mlflow_track.analysis.summary import read_summaries
    from mlflow_track.ui.address import page_of
    from mlflow_track.ui.server import UiServer, UiServerError

    summaries, skipped = read_summaries(root)
    echo_skipped(skipped)
    require_runs(root, summaries, skipped)
    many = count_text(len(summaries), "run")
    echo(f"starting the MLflow UI over {many} in {root}", err=True)
    # Under nohup the end of the terminal is ignored, and must stay so.
    taken = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) != signal.SIG_IGN]
    handlers = {n: signal.signal(n, _interrupt) for n in taken}
    try:
        with UiServer(root, port) as server:
            page = page_of(server.url, summaries[-1].experiment)
            if as_json:
                # On one line: the rest follows after a wait.
                print_json({"url": page}, is_line=True)
            else:
                echo(page)
            echo("Ctrl-C ends it", err=True)
            if not no_browser:
                click.launch(page)
            if server.wait():
                raise click.exceptions.Exit(exit_codes.NO)
    except UiServerError as error:
        raise click.ClickException(str(error)) from None
    except KeyboardInterrupt:
        pass
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
