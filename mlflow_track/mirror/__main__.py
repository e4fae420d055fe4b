"""`python -m mlflow_track.mirror RUNFOLDER`, with MLFLOW_TRACKING_URI set: started by a run."""

import os
import sys
from pathlib import Path

from mlflow_track.mirror.process import mirror_run, open_mlflow

if __name__ == "__main__":
    mirror_run(Path(sys.argv[1]), os.environ["MLFLOW_TRACKING_URI"], open_mlflow)
