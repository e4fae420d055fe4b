"""`python -m mlflow_track.cli`, where the console script is not on the PATH."""

from mlflow_track.cli import main

if __name__ == "__main__":
    main(prog_name="mlflow-track")
