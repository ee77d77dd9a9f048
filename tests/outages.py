"""A network that can fail: a TCP proxy before a server."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress


class Network:
    """Forwards connections from `endpoint` to a server, until it is cut."""

    def __init__(self, server: str) -> None:
        host, _, port = server.partition(":")
        self._server = host, int(port)
        self._open: set[socket.socket] = set()
        self._left: int | None = None
        self._listen(0)

    @property
    def endpoint(self) -> str:
        """Host and port to which clients connect."""
        return f"127.0.0.1:{self._port}"

    def cut(self) -> None:
        """Break all connections and refuse new ones."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._break()

    def cut_after(self, count: int) -> None:
        """Cut when the server has sent so many bytes more."""
        self._left = count

    def mend(self) -> None:
        """Forward connections again."""
        self._left = None
        self._listen(self._port)

    def mend_later(self, seconds: float) -> None:
        """Forward connections again after some time."""
        threading.Timer(seconds, self.mend).start()

    def _listen(self, port: int) -> None:
        self._listener = socket.create_server(("127.0.0.1", port))
        self._port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                server = socket.create_connection(self._server)
                self._open |= {client, server}
                for pair in ((client, server), (server, client)):
                    threading.Thread(target=self._forward, args=pair, daemon=True).start()

    def _forward(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if self._left is not None and source.getpeername() == self._server:
                    data = data[: self._left]
                    self._left -= len(data)
                target.sendall(data)
                if self._left == 0:
                    self.cut()
                    return
            target.shutdown(socket.SHUT_WR)

    def _break(self) -> None:
        while self._open:
            with suppress(OSError):
                self._open.pop().shutdown(socket.SHUT_RDWR)
