"""A gateway before a real MLflow server: it passes on, refuses, swallows or breaks requests."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple


class Reply(NamedTuple):
    """What the gateway answers in the server's place."""

    status: int
    body: str = "refused"
    headers: Mapping[str, str] = {}
    # Whether the server gets the request all the same, so that only its answer is lost.
    is_passed_on: bool = False


Rule = Callable[[str, str, bytes], Reply | None]
RESET = Reply(0)


class Gateway:
    """Listens on a port of its own.

    Args:
        port: The server's.

    Attributes:
        rule: Gives for (method, path, body) the answer; None passes it on, RESET breaks the line.
        seen: (method, path) of every request.
    """

    def __init__(self, port: int) -> None:
        self.rule: Rule = lambda method, path, body: None
        self.seen: list[tuple[str, str]] = []
        gateway, upstream = self, port

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                gateway.seen.append((self.command, self.path))
                reply = gateway.rule(self.command, self.path, body)
                if reply is None or reply.is_passed_on:
                    passed = self._pass_on(body)
                    reply = passed if reply is None else reply
                if reply.status == 0:
                    self.close_connection = True
                    return
                data = reply.body.encode("latin-1", "replace")
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def _pass_on(self, body: bytes) -> Reply:
                with contextlib.closing(
                    http.client.HTTPConnection("127.0.0.1", upstream, timeout=60)
                ) as connection:
                    headers = {
                        name: value
                        for name, value in self.headers.items()
                        if name.lower() not in ("host", "connection", "accept-encoding")
                    }
                    try:
                        connection.request(self.command, self.path, body, headers)
                        response = connection.getresponse()
                        text = response.read().decode("latin-1")
                    except OSError:
                        return RESET
                kind = response.headers.get("Content-Type") or "application/json"
                return Reply(response.status, text, {"Content-Type": kind})

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextlib.contextmanager
def gateway_to(port: int = 9) -> Iterator[Gateway]:
    """A gateway; without a server behind it, where its rule answers everything."""
    gateway = Gateway(port)
    try:
        yield gateway
    finally:
        gateway.close()
