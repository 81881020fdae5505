"""What all servers have in common."""

from __future__ import annotations

import shutil
import socket
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path

from tests.servers.process import Process, Started, free_port


class Server(Started):
    """A server on a port of its own, whose data and log are in a folder of its own."""

    start_timeout = 60.0

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.port = free_port()
        self._process: Process | None = None

    @property
    @abstractmethod
    def url(self) -> str:
        """Where clients find the server."""

    @property
    def process(self) -> Process:
        """The process of the server, which must have been started."""
        assert self._process is not None, "not started"
        return self._process

    @property
    def is_running(self) -> bool:
        """Whether the server's process is there."""
        return self._process is not None and self._process.is_running

    def start(self) -> None:
        """Start the server and return when it answers."""
        self.data.mkdir(parents=True, exist_ok=True)
        command = self._command()
        self._process = Process(command, log=self.folder / "log", env=self._environment())
        self._process.start()
        try:
            self._process.wait_until(self._answers, "the server answers", self.start_timeout)
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """Have the server end in good order."""
        if self._process is not None:
            self._process.stop()
            self._process = None

    def kill(self) -> None:
        """End the server with no chance to clean up."""
        if self._process is not None:
            self._process.kill()
            self._process = None

    def suspend(self) -> None:
        """Have the server hang; its connections stay open."""
        self.process.suspend()

    def resume(self) -> None:
        """Have a suspended server go on."""
        self.process.resume()

    def restart(self, *, keep_data: bool) -> None:
        """Stop the server, if it still runs, and start it on the same port."""
        self.stop()
        if not keep_data:
            shutil.rmtree(self.data, ignore_errors=True)
        self.start()

    @abstractmethod
    def _command(self) -> list[str]:
        """The command line; files it needs in the data folder are written here."""

    def _environment(self) -> Mapping[str, str] | None:
        return None

    @abstractmethod
    def _answers(self) -> bool:
        """Whether the server serves a client."""

    def _answer(self, request: bytes) -> bytes:
        """What the server says first to these bytes; nothing if it cannot be reached."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1.0) as connection:
                connection.sendall(request)
                return connection.recv(4096)
        except OSError:
            return b""
