"""PostgreSQL, as a cluster apart from the system's."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import struct
import subprocess
import tempfile
import time
import weakref
from collections.abc import Mapping
from pathlib import Path

from tests.servers.process import POLL_INTERVAL, TAIL, ProcessError, descendants, find_program
from tests.servers.server import Server

DEBIAN = Path("/usr/lib/postgresql")
"""Where Debian has the programs, by version; it has only the clients in PATH."""

USER = "postgres"
"""Whom Debian's package makes. The server refuses to be root's, and is this user's then."""

SSL_REQUEST = struct.pack("!II", 8, 80877103)


class PostgresServer(Server):
    """A PostgreSQL that trusts everybody and leaves to the system when data gets to the disk.

    So what it has survives that it is killed, though no loss of power.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._as_user: list[str] = []
        if os.geteuid() == 0:
            # What is in a folder of pytest's or below one's home, the other user cannot get at.
            self.data = Path(tempfile.mkdtemp(prefix="taskiq_flow-postgres-"))
            weakref.finalize(self, shutil.rmtree, self.data, ignore_errors=True)
            identity = [f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
            self._as_user = ["env", "--chdir=/", "setpriv", *identity, "--"]

    @classmethod
    def is_available(cls) -> bool:
        """Whether the programs are installed."""
        return _programs() is not None

    @property
    def url(self) -> str:
        """Where clients find the server."""
        return f"postgresql://{USER}@127.0.0.1:{self.port}/postgres"

    def stop(self) -> None:
        """Have the server end in good order, whether clients are connected or not."""
        self._ask_to_end(signal.SIGINT)
        super().stop()

    def kill(self) -> None:
        """End the server with no chance to clean up, except its memory that outlives processes."""
        self._ask_to_end(signal.SIGQUIT)
        super().kill()

    def suspend(self) -> None:
        """Have the server hang; its connections stay open."""
        self._signal_all(signal.SIGSTOP)

    def resume(self) -> None:
        """Have a suspended server go on."""
        self._signal_all(signal.SIGCONT)

    def _signal_all(self, number: signal.Signals) -> None:
        # Each of its processes has a group of its own.
        for pid in (self.process.pid, *descendants(self.process.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _ask_to_end(self, number: signal.Signals) -> None:
        if not self.is_running:
            return
        os.kill(self.process.pid, number)
        self.resume()
        deadline = time.monotonic() + 10.0
        while self.is_running and time.monotonic() < deadline:
            time.sleep(POLL_INTERVAL)

    def _command(self) -> list[str]:
        programs = _programs()
        assert programs is not None, "not installed"
        if not (self.data / "PG_VERSION").exists():
            self._make_cluster(programs)
        options = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            "dynamic_shared_memory_type": "mmap",  # in its folder, with which it goes
            "fsync": "off",
        }
        words = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        return [*self._as_user, str(programs / "postgres"), "-D", str(self.data), *words]

    def _make_cluster(self, programs: Path) -> None:
        if self._as_user:
            shutil.chown(self.data, USER, USER)
        words = [f"--username={USER}", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"]
        done = subprocess.run(  # noqa: S603 - made here
            [*self._as_user, str(programs / "initdb"), *words, str(self.data)],
            env=self._environment(),
            capture_output=True,
            encoding="utf-8",
            check=False,
        )
        if done.returncode:
            raise ProcessError(f"no cluster could be made: {(done.stdout + done.stderr)[-TAIL:]}")

    def _environment(self) -> Mapping[str, str]:
        return {"PATH": os.environ["PATH"], "LC_ALL": "C"}  # and nothing that begins with PG

    def _answers(self) -> bool:
        is_ready = "ready to accept connections" in self.process.log_since_start()
        return is_ready and self._answer(SSL_REQUEST) == b"N"


def _programs() -> Path | None:
    """The folder of the programs, of the latest version if Debian has several."""
    if found := find_program("initdb"):
        return Path(found).resolve().parent
    folders = [path.parent for path in DEBIAN.glob("*/bin/initdb")]
    return max(folders, key=lambda folder: float(folder.parent.name), default=None)
