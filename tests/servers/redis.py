"""Redis, as one server, as a cluster of one, and with a sentinel."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import redis

from tests.servers.process import find_program, free_port
from tests.servers.server import Server

SLOTS = 16384

BUS = 10_000
"""How far above a node's port that of the cluster's own messages lies."""


def newest_program() -> str | None:
    """A Redis server of version 7 or later among the system's programs, if there is one."""
    found = shutil.which("redis-server", path="/usr/local/bin:/usr/bin")
    if found is None:
        return None
    said = subprocess.run([found, "--version"], capture_output=True, check=True).stdout.decode()  # noqa: S603
    version = re.search(r"v=(\d+)\.", said)
    return found if version is not None and int(version[1]) >= 7 else None


class RedisServer(Server):
    """A Redis that writes each command to disk before it answers, unless told not to."""

    def __init__(
        self,
        folder: Path,
        *,
        appendonly: bool = True,
        maxmemory: str | None = None,
        arguments: tuple[str, ...] = (),
        program: str | None = None,
    ) -> None:
        super().__init__(folder)
        self.program = program or find_program("redis-server") or "redis-server"
        self.appendonly = appendonly
        self.maxmemory = maxmemory
        self.arguments = arguments

    @classmethod
    def is_available(cls) -> bool:
        """Whether the program is installed."""
        return find_program("redis-server") is not None

    @property
    def url(self) -> str:
        """Where clients find the server."""
        return f"redis://127.0.0.1:{self.port}"

    def restart(self, *, keep_data: bool) -> None:
        """Stop the server, if it still runs, and start it on the same port."""
        if keep_data and not self.appendonly:
            raise ValueError("a Redis without an append-only file keeps no data")
        super().restart(keep_data=keep_data)

    def client(self) -> redis.Redis:
        """Give a client of the server, for the caller to close."""
        return redis.Redis(port=self.port, socket_timeout=5.0, decode_responses=True)

    def _command(self) -> list[str]:
        options = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "dir": str(self.data),
            "save": "",
            "appendonly": "yes" if self.appendonly else "no",
            "appendfsync": "always",
        }
        if self.maxmemory is not None:
            options |= {"maxmemory": self.maxmemory, "maxmemory-policy": "noeviction"}
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        return [self.program, *words, *self.arguments]

    def _answers(self) -> bool:
        return self._answer(b"PING\r\n").startswith(b"+PONG")


class RedisCluster(RedisServer):
    """A cluster of one node, which has all slots, or none if it is to join another."""

    def __init__(self, folder: Path, *, appendonly: bool = True, slots: int = SLOTS) -> None:
        arguments = ("--cluster-enabled", "yes", "--cluster-announce-ip", "127.0.0.1")
        super().__init__(folder, appendonly=appendonly, arguments=arguments)
        self.port = free_port(BUS)
        self.slots = slots

    def start(self) -> None:
        """Start the node, give it its slots, and return when the cluster is up."""
        super().start()
        if not self.slots:
            return
        with self.client() as client:
            if client.execute_command("CLUSTER INFO")["cluster_slots_assigned"] == "0":
                client.execute_command("CLUSTER ADDSLOTS", *range(self.slots))
            self.process.wait_until(
                lambda: client.execute_command("CLUSTER INFO")["cluster_state"] == "ok",
                "the cluster is up",
                self.start_timeout,
            )

    def join(self, other: RedisCluster) -> None:
        """Become a node of another's cluster."""
        with self.client() as client:
            client.execute_command("CLUSTER MEET", "127.0.0.1", other.port)
            self.process.wait_until(
                lambda: client.execute_command("CLUSTER INFO")["cluster_state"] == "ok",
                "it has joined the cluster",
                self.start_timeout,
            )


class RedisSentinel(Server):
    """A sentinel that watches one Redis."""

    master_name = "mymaster"

    def __init__(self, folder: Path, master: RedisServer) -> None:
        super().__init__(folder)
        self.master = master

    @property
    def url(self) -> str:
        """Where clients find the sentinel; the master is another matter."""
        return f"redis://127.0.0.1:{self.port}"

    def _command(self) -> list[str]:
        configuration = self.data / "sentinel.conf"
        configuration.write_text(
            "bind 127.0.0.1\n"
            f"port {self.port}\n"
            f"dir {self.data}\n"
            f"sentinel monitor {self.master_name} 127.0.0.1 {self.master.port} 1\n"
            f"sentinel down-after-milliseconds {self.master_name} 500\n",
        )
        return [find_program("redis-server") or "redis-server", str(configuration), "--sentinel"]

    def _answers(self) -> bool:
        question = f"SENTINEL get-master-addr-by-name {self.master_name}\r\n"
        return str(self.master.port).encode() in self._answer(question.encode())
