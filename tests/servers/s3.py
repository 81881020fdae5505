"""Moto's S3 server, which keeps its buckets in its memory."""

from __future__ import annotations

import importlib.util
import sys

from tests.servers.server import Server


class S3Server(Server):
    """An S3 server. ``environment`` has what its clients need."""

    @classmethod
    def is_available(cls) -> bool:
        """Whether the server and its client are installed."""
        return all(importlib.util.find_spec(name) for name in ("moto", "flask_cors", "s3fs"))

    @property
    def url(self) -> str:
        """Where clients find the server."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """The settings of boto's clients."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_MAX_ATTEMPTS": "1",
        }

    def _command(self) -> list[str]:
        words = ["-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        return [sys.executable, *words]

    def _answers(self) -> bool:
        return self._answer(b"GET / HTTP/1.0\r\n\r\n").startswith(b"HTTP/")
