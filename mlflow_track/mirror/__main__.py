"""`python -m mlflow_track.mirror RUNFOLDER BACKEND… [RENEWAL]`: started by a run, or in its place.

Standard input is the pipe that ends with the trainer; each line on standard output is for the
trainer's console; standard error is mirror.log.
"""

import os
import sys
from pathlib import Path

import msgspec

from mlflow_track.mirror import WORKING_FOLDER
from mlflow_track.mirror.process import Renewal, mirror_run


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

    path, names = Path(sys.argv[1]), sys.argv[2:]
    renewed = None
    if names[-1].startswith("{"):
        renewed = msgspec.json.decode(names.pop(), type=Renewal)
    renewal = mirror_run(path, names, tell=tell, renewed=renewed)
    if renewal is not None:
        # The same process, without the clients that it has loaded: 170 MB for each run that waits.
        os.dup2(console, 1)
        os.chdir(path)
        state = msgspec.json.encode(renewal).decode()
        command = [sys.executable, "-m", "mlflow_track.mirror", str(path), *renewal.failures, state]
        os.execv(sys.executable, command)
    # A call that does not return, in a thread, would hold up the end of the interpreter as well.
    os._exit(0)


if __name__ == "__main__":
    main()
