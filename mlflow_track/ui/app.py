"""MLflow's server as a process that refuses every request that writes: `python -m …app URI PORT`.

The tracking store refuses on its own; MLflow's other routes (assistant, jobs, gateway) know no
store, and write into the home folder of whoever started the server.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any

_Message = MutableMapping[str, Any]
_Application = Callable[..., Coroutine[Any, Any, None]]
_READING = ("GET", "HEAD", "OPTIONS")
# The ends of the paths that read although they are asked by POST. Telemetry is switched off.
_READING_POSTS = (
    *("/search", "/search-datasets", "/get-latest-versions", "/batchGetInfos", "/traces/metrics"),
    *("/calculate-filter-correlation", "/graphql", "/presigned-download-url", "/ui-telemetry"),
)
# Asked for these the store refuses, and says which change it was.
_STORES = "/mlflow/"
_OF_THE_STORE = ("runs/", "experiments/", "registered-models/", "model-versions/", "logged-models")
_REFUSED = json.dumps(
    {
        "error_code": "PERMISSION_DENIED",
        "message": "this page is read-only: it shows folders of runs as they are",
    }
).encode()


def is_reading(method: str, path: str) -> bool:
    """Whether a request can only read, or is left to the store, which refuses to write."""
    if method in _READING:
        return True
    path = path.rstrip("/")
    if method != "POST":
        return False
    of_store = path.partition(_STORES)[2].startswith(_OF_THE_STORE)
    return of_store or path.endswith(_READING_POSTS)


def read_only(application: _Application) -> _Application:
    """An ASGI application before another one; it answers what writes with 403."""

    async def serve(
        scope: _Message,
        receive: Callable[[], Awaitable[_Message]],
        send: Callable[[_Message], Awaitable[None]],
    ) -> None:
        if scope["type"] != "http" or is_reading(scope["method"], scope["path"]):
            await application(scope, receive, send)
            return
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 403, "headers": headers})
        await send({"type": "http.response.body", "body": _REFUSED})

    return serve


def main(uri: str, port: int) -> None:
    """Serve the records at a tracking URI on 127.0.0.1."""
    import uvicorn
    from mlflow import server

    # What `mlflow server` would hand to its workers. Artifacts are not proxied, otherwise the
    # server would take files from anyone who asks it to.
    for name in (
        server.BACKEND_STORE_URI_ENV_VAR,
        server.REGISTRY_STORE_URI_ENV_VAR,
        server.ARTIFACT_ROOT_ENV_VAR,
    ):
        os.environ[name] = uri
    from mlflow.server.fastapi_app import app

    uvicorn.run(read_only(app), host="127.0.0.1", port=port)  # type: ignore[arg-type]


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
