"""`python -m tests.servers`: an MLflow server on PostgreSQL for a person; the data stays."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from tests.servers.mlflow_server import MlflowServer
from tests.servers.postgres import Postgres


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=5000, help="of the MLflow server")
    parser.add_argument("--folder", type=Path, default=Path(".server"), help="where the data is")
    arguments = parser.parse_args()
    folder = arguments.folder.absolute()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    try:
        postgres = Postgres(folder / "postgres", is_durable=True)
    except FileNotFoundError as error:
        sys.exit(str(error))
    print(f"Starting PostgreSQL and MLflow in {folder} (about 20 s)", flush=True)
    try:
        postgres.start()
        artifacts = folder / "artifacts"
        server = MlflowServer(folder, postgres.uri("mlflow"), str(artifacts), port=arguments.port)
        try:
            server.start()
            print(
                f"MLflow is at {server.uri}/#/experiments?workflowType=machine_learning\n"
                f"Log to it:    export MLFLOW_TRACKING_URI={server.uri}\n"
                f"Artifacts:    {artifacts}\nCtrl-C ends it; the data stays.",
                flush=True,
            )
            signal.pause()
        finally:
            server.stop()
    except (KeyboardInterrupt, SystemExit):
        print("\nEnding", flush=True)
    except RuntimeError as error:
        sys.exit(str(error))
    finally:
        postgres.stop()


if __name__ == "__main__":
    main()
