"""RabbitMQ, as a node apart from the system's."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.servers.process import Process, find_program, free_port
from tests.servers.server import Server

PROGRAM = Path(
    os.environ.get("TASKIQ_FLOW_TESTS_RABBITMQ", "/usr/lib/rabbitmq/bin/rabbitmq-server")
)
"""Debian's; the one in PATH is a wrapper that changes to the system's user and its files.

The variable names that of another release, with its ``rabbitmqctl`` beside it.
"""


class RabbitServer(Server):
    """A RabbitMQ node without plugins, with an epmd of its own."""

    def __init__(
        self, folder: Path, *, joins: RabbitServer | None = None, **settings: int | str
    ) -> None:
        """``settings``: of the server's application, such as ``consumer_timeout`` (ms).

        Words are those of Erlang. ``joins``: a node that runs, whose cluster it becomes part of.
        """
        super().__init__(folder)
        self._settings = settings
        self._joins = joins
        self._epmd_port: int = joins._epmd_port if joins else free_port()
        self._distribution_port = free_port()
        self._epmd: Process | None = None

    @classmethod
    def is_available(cls) -> bool:
        """Whether the program is installed."""
        return PROGRAM.exists() and find_program("epmd") is not None

    @property
    def url(self) -> str:
        """Where clients find the server."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}/"

    @property
    def epmd(self) -> Process:
        """The process of Erlang's port mapper, which must have been started."""
        assert self._epmd is not None, "not started"
        return self._epmd

    @property
    def name(self) -> str:
        """The node's name in a cluster."""
        return f"node{self.port}@localhost"

    def start(self) -> None:
        """Start the server and return when it answers."""
        self.data.mkdir(parents=True, exist_ok=True)
        cookie = self.data / ".erlang.cookie"  # by which nodes know each other
        if not cookie.exists():
            cookie.write_text("COOKIE")
            cookie.chmod(0o400)
        if self._joins is not None:
            super().start()
            return
        # RabbitMQ needs an epmd and would leave behind the one it starts itself
        words = ["-port", str(self._epmd_port), "-address", "127.0.0.1"]
        self._epmd = Process(
            [find_program("epmd") or "epmd", *words],
            log=self.folder / "epmd.log",
        )
        self._epmd.start()
        try:
            super().start()
        except BaseException:
            self._stop_epmd()
            raise

    def stop(self) -> None:
        """Have the server end in good order."""
        super().stop()
        self._stop_epmd()

    def kill(self) -> None:
        """End the server with no chance to clean up."""
        super().kill()
        self._stop_epmd()

    def control(self, *words: str) -> str:
        """Run ``rabbitmqctl``. Returns what it writes."""
        command = [str(PROGRAM.with_name("rabbitmqctl")), "--quiet", *words]
        return subprocess.run(  # noqa: S603 - of this server
            command, env=self._environment(), capture_output=True, text=True, check=True
        ).stdout

    def _stop_epmd(self) -> None:
        if self._epmd is not None:
            self._epmd.kill()
            self._epmd = None

    def _command(self) -> list[str]:
        (self.data / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = 127.0.0.1:{self.port}\n"
            "vm_memory_high_watermark.absolute = 512MB\n"
            "disk_free_limit.absolute = 1MB\n"
            + (
                "cluster_formation.peer_discovery_backend = classic_config\n"
                f"cluster_formation.classic_config.nodes.1 = {self._joins.name}\n"
                if self._joins is not None
                else ""
            ),
        )
        (self.data / "enabled_plugins").write_text("[].\n")
        settings = ", ".join(f"{{{name}, {value}}}" for name, value in self._settings.items())
        (self.data / "advanced.config").write_text(f"[{{rabbit, [{settings}]}}].\n")
        (self.data / "rabbitmq-env.conf").write_text("")
        return [str(PROGRAM)]

    def _environment(self) -> Mapping[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "HOME": str(self.data),  # of the Erlang cookie
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(self._epmd_port),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self.data / "advanced.config"),
            "RABBITMQ_CONFIG_FILE": str(self.data / "rabbitmq.conf"),
            "RABBITMQ_CONF_ENV_FILE": str(self.data / "rabbitmq-env.conf"),
            "RABBITMQ_DIST_PORT": str(self._distribution_port),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.data / "enabled_plugins"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_LOG_BASE": str(self.data / "log"),
            "RABBITMQ_MNESIA_BASE": str(self.data / "mnesia"),
            "RABBITMQ_NODENAME": self.name,
            "RABBITMQ_SCHEMA_DIR": str(self.data / "schema"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 2:2",
            "RUNNING_UNDER_SYSTEMD": "true",  # has the script become the server, with no shell left
        }

    def _answers(self) -> bool:
        log = self.process.log_since_start()
        return "Server startup complete" in log and b"AMQPLAIN" in self._answer(b"AMQP\0\0\x09\x01")
