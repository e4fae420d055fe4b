"""`python -m mlflow_track.mirror RUNFOLDER BACKEND…`: started by a run.

Standard input is the pipe that ends with the trainer; each line on standard output is for the
trainer's console; standard error is mirror.log.
"""

import os
import sys
from pathlib import Path

from mlflow_track.mirror.companion import WORKING_FOLDER
from mlflow_track.mirror.process import mirror_run


def main() -> None:
    # Only now: at the start, what lies in this folder would hide modules of the same name.
    if folder := os.environ.get(WORKING_FOLDER):
        os.chdir(folder)
    # What libraries print is not for the trainer's console.
    console = os.dup(1)
    os.dup2(2, 1)

    def tell(text: str) -> None:
        try:
            os.write(console, (text.replace("\n", " ") + "\n").encode())
        except OSError:
            pass  # the trainer has ended

    mirror_run(Path(sys.argv[1]), sys.argv[2:], tell=tell)


if __name__ == "__main__":
    main()
