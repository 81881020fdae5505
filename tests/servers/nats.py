"""NATS with JetStream."""

from __future__ import annotations

from pathlib import Path

from tests.servers.process import find_program
from tests.servers.server import Server


class NatsServer(Server):
    """A NATS server that keeps its streams in its folder."""

    def __init__(self, folder: Path, configuration: str = "") -> None:
        """``configuration``: what its file says, such as its users."""
        super().__init__(folder)
        self._configuration = configuration

    @classmethod
    def is_available(cls) -> bool:
        """Whether the program is installed."""
        return find_program("nats-server") is not None

    @property
    def url(self) -> str:
        """Where clients find the server."""
        return f"nats://127.0.0.1:{self.port}"

    def _command(self) -> list[str]:
        program = find_program("nats-server") or "nats-server"
        file = self.data / "server.conf"
        file.write_text(self._configuration)
        words = ["-a", "127.0.0.1", "-p", str(self.port), "-js", "-sd", str(self.data)]
        return [program, *words, "-c", str(file)]

    def _answers(self) -> bool:
        return self._answer(b"").startswith(b"INFO") and self._is_ready()

    def _is_ready(self) -> bool:
        return "Server is ready" in self.process.log_since_start()
