"""An interpreter that starts as any other, and forks a child for each program that it is given.

For what `tests/forked.py` cannot do: other users, other packages. The imports are paid once.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence

from tests.forked import ROOT

_SERVE = """
import json, os, sys, tempfile
{imports}
for line in sys.stdin:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if child == 0:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            exec(json.loads(line), globals())
            sys.exit()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        out.seek(0), err.seek(0)
        said = [each.read().decode() for each in (out, err)]
    print(json.dumps([status, *said]), flush=True)
"""


class ForkingInterpreter:
    """The process; a context manager.

    Args:
        imports: What it imports first.
        folder: Where it runs; None is the current one.
        before: The words of a command that starts it, such as `setpriv`.
        environment: Variables that differ from this process's.

    Raises:
        RuntimeError: It cannot import that.
    """

    def __init__(
        self,
        imports: str,
        *,
        folder: str | None = None,
        before: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._process = subprocess.Popen(
            [*before, sys.executable, "-c", _SERVE.format(imports=imports)],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            self.run("")
        except RuntimeError:
            self.close()
            raise

    def run(self, code: str) -> subprocess.CompletedProcess[str]:
        """Run the program in a child."""
        assert self._process.stdin is not None and self._process.stdout is not None
        assert self._process.stderr is not None
        try:
            self._process.stdin.write(json.dumps(code) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # It says below why it has ended.
        if not (answer := self._process.stdout.readline()):
            raise RuntimeError(self._process.stderr.read())
        return subprocess.CompletedProcess(code, *json.loads(answer))

    def close(self) -> None:
        self._process.communicate()

    def __enter__(self) -> ForkingInterpreter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
