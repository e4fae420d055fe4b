"""A small TCP proxy that makes the faults that a server and the way to it can have."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time

MODES = ("pass", "refuse", "hang", "drip", "cut", "500", "429", "401", "403")
_REASONS = {"500": "Internal Server Error", "429": "Too Many Requests", "401": "Unauthorized"}


class FaultProxy:
    """Listens on a port of its own and passes on to `port`, or does not.

    Attributes:
        mode: "pass"; "refuse" every connection; "hang": accept and never answer; "drip": answer a
            byte a second, without end; "cut": the server
            gets the request, and the connection breaks in the middle of its response; or an HTTP
            status that is answered in the server's place.
    """

    def __init__(self, port: int) -> None:
        self._upstream = port
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.mode = "pass"
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener: socket.socket | None = None
        self.become("pass")

    def become(self, mode: str) -> None:
        """Change the mode; connections that are open break."""
        assert mode in MODES, mode
        self.mode = mode
        if mode == "refuse":
            self._stop_listening()
        elif self._listener is None:
            self._listen()
        with self._lock:
            connections, self._open = self._open, set()
        for connection in connections:
            _reset(connection)

    def close(self) -> None:
        self.become("refuse")

    def _listen(self) -> None:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        listener.listen(64)
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def _stop_listening(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            # Closing alone would leave the thread in accept, and the port open with it.
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with self._lock:
                self._open.add(client)
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        mode = self.mode
        try:
            if mode == "hang":
                while client.recv(65536):
                    pass
            elif mode == "drip":
                _read_request(client)
                client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n{")
                while True:
                    time.sleep(0.2)
                    client.sendall(b" ")
            elif mode in ("pass", "cut"):
                self._pass_on(client, most_bytes=None if mode == "pass" else 20)
            else:
                _read_request(client)
                client.sendall(
                    f"HTTP/1.1 {mode} {_REASONS.get(mode, 'Fault')}\r\nContent-Length: 5\r\n"
                    "Connection: close\r\n\r\nfault".encode()
                )
                client.close()
        except OSError:
            _reset(client)

    def _pass_on(self, client: socket.socket, most_bytes: int | None) -> None:
        server = socket.create_connection(("127.0.0.1", self._upstream), timeout=60)
        with self._lock:
            self._open.add(server)
        threading.Thread(target=_pump, args=(client, server), daemon=True).start()
        passed = 0
        while piece := server.recv(65536):
            if most_bytes is not None and passed + len(piece) > most_bytes:
                client.sendall(piece[: most_bytes - passed])
                time.sleep(0.01)
                _reset(client)
                _reset(server)
                return
            client.sendall(piece)
            passed += len(piece)
        _reset(client)


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while piece := source.recv(65536):
            target.sendall(piece)
        target.shutdown(socket.SHUT_WR)


def _read_request(client: socket.socket) -> None:
    data = b""
    while b"\r\n\r\n" not in data and (piece := client.recv(65536)):
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    length = 0
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    left = length - len(body)
    while left > 0 and (piece := client.recv(65536)):
        left -= len(piece)


def _reset(connection: socket.socket) -> None:
    """Break it as a crash does, with a reset instead of an orderly end."""
    with contextlib.suppress(OSError):
        linger = struct.pack("ii", 1, 0)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    with contextlib.suppress(OSError):
        # Wakes the threads that read from it.
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
