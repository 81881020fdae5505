"""Redis, as one server, as a cluster of one, and with a sentinel."""

from __future__ import annotations

import re
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import redis

from tests.servers.process import Started, find_program, free_port
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

    def wait_for_master(self) -> None:
        """Wait until the server, which is a replica, follows its master."""
        with self.client() as client:
            self.process.wait_until(
                lambda: client.info("replication")["master_link_status"] == "up",
                "it follows its master",
                self.start_timeout,
            )

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

    def __init__(
        self,
        folder: Path,
        *,
        appendonly: bool = True,
        slots: int = SLOTS,
        program: str | None = None,
    ) -> None:
        arguments = ("--cluster-enabled", "yes", "--cluster-announce-ip", "127.0.0.1")
        super().__init__(folder, appendonly=appendonly, arguments=arguments, program=program)
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
            f"sentinel down-after-milliseconds {self.master_name} 500\n"
            f"sentinel failover-timeout {self.master_name} 5000\n",
        )
        return [self.master.program, str(configuration), "--sentinel"]

    def wait_for_replica(self) -> None:
        """Wait until the sentinel knows of a replica that can take over."""
        with redis.Redis(port=self.port, decode_responses=True) as client:
            self.process.wait_until(
                lambda: bool(client.execute_command("SENTINEL REPLICAS", self.master_name)),
                "it knows the replica",
                self.start_timeout,
            )

    def fail_over(self) -> None:
        """Have the replica become the master, and the master its replica."""
        with redis.Redis(port=self.port, decode_responses=True) as client:
            client.execute_command("SENTINEL FAILOVER", self.master_name)

    def _answers(self) -> bool:
        question = f"SENTINEL get-master-addr-by-name {self.master_name}\r\n"
        return str(self.master.port).encode() in self._answer(question.encode())


class ReplicatedCluster(Started):
    """Three nodes with a third of the slots each, and a replica of each of them."""

    def __init__(self, folder: Path, *, program: str | None = None) -> None:
        ends = [SLOTS * third // 3 for third in range(4)]
        self._slots = [range(*pair) for pair in pairwise(ends)]
        self.masters, self.replicas = (
            [
                RedisCluster(folder / f"{kind}{n}", appendonly=False, slots=0, program=program)
                for n in range(3)
            ]
            for kind in ("master", "replica")
        )
        self.nodes = self.masters + self.replicas
        for node in self.nodes:
            node.arguments += ("--cluster-node-timeout", "1000")

    def start(self) -> None:
        """Start the nodes, and return when each has its part."""
        for node in self.nodes:
            node.start()
        first, *others = self.masters
        for number, (master, slots) in enumerate(zip(self.masters, self._slots, strict=True), 1):
            with master.client() as client:
                client.execute_command("CLUSTER SET-CONFIG-EPOCH", number)
                client.execute_command("CLUSTER ADDSLOTS", *slots)
        with first.client() as client:
            for node in (*others, *self.replicas):
                client.execute_command("CLUSTER MEET", "127.0.0.1", node.port)
        for master, replica in zip(self.masters, self.replicas, strict=True):
            with master.client() as client:
                master_id = client.execute_command("CLUSTER MYID")
            self._wait_for(replica, master_id)
            with replica.client() as client:
                client.execute_command("CLUSTER REPLICATE", master_id)
        for node in self.nodes:
            self._wait_for(node, "slave", len(self.replicas))
        for replica in self.replicas:
            replica.wait_for_master()

    def move_slot(self, slot: int, source: RedisCluster, target: RedisCluster) -> None:
        """Move a slot with its keys from one master to another, as ``redis-cli`` does."""
        with source.client() as old, target.client() as new:
            ids = [client.execute_command("CLUSTER MYID") for client in (old, new)]
            new.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", ids[0])
            old.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", ids[1])
            while keys := old.execute_command("CLUSTER GETKEYSINSLOT", slot, 10):
                old.execute_command("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
            for client in (new, old):
                client.execute_command("CLUSTER SETSLOT", slot, "NODE", ids[1])

    def kill(self) -> None:
        """Kill the nodes that run."""
        for node in self.nodes:
            node.kill()

    @staticmethod
    def _wait_for(node: RedisCluster, word: str, count: int = 1) -> None:
        """Wait until a word stands so often in what a node knows of the cluster."""
        with node.client() as client:
            node.process.wait_until(
                lambda: str(client.execute_command("CLUSTER NODES")).count(word) >= count,
                "it knows the others",
                node.start_timeout,
            )
