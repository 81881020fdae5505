"""Makes clients of Redis from an address: of one server, behind sentinels, or of a cluster."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from redis.asyncio import Connection, ConnectionPool, Redis, RedisCluster, Sentinel, SSLConnection
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import parse_url

from taskiq_flow.transport.systems import without_secrets

SENTINEL_PORT, PORT = 26379, 6379


class Clients(NamedTuple):
    """How to make clients of one address. None of them is connected at first.

    ``most_connections``: how many of its pool the address allows, if it says so.
    """

    make: Callable[[], Any]
    most_connections: int | None
    is_cluster: bool = False


def clients_at(url: str) -> Clients:
    """The clients of an address.

    It is that of one server, ``redis://``, ``rediss://`` or ``unix://``; or of sentinels,
    ``redis+sentinel://HOST:PORT,HOST:PORT/MASTER/DB``; or of nodes of a cluster,
    ``redis+cluster://HOST:PORT,HOST:PORT``. Both begin with ``rediss+`` for TLS. User, password and
    options are those of the servers. Raises ``ValueError`` for another address.
    """
    scheme, _, rest = url.partition("://")
    plain, _, way = scheme.partition("+")
    try:
        if not way:
            return _of_one(url)
        if plain not in ("redis", "rediss") or way not in ("sentinel", "cluster"):
            raise ValueError(
                f"the journal's address {without_secrets(url)!r} is of none of the schemes "
                "redis, rediss, unix, redis+sentinel and redis+cluster"
            )
        return (_of_sentinels if way == "sentinel" else _of_cluster)(f"{plain}://{rest}", url)
    except TypeError as error:
        option = str(error).rpartition(" ")[2]
        raise ValueError(
            f"the journal's address {without_secrets(url)!r} has the option {option}, which "
            "the Redis client does not know; correct it, or leave it out"
        ) from None


def _of_one(url: str) -> Clients:
    settings: dict[str, Any] = dict(parse_url(url))  # raises ValueError
    pool = ConnectionPool.from_url(url)
    pool.connection_class(**pool.connection_kwargs)  # raises TypeError
    return Clients(partial(Redis.from_url, url), settings.get("max_connections"))


def _of_sentinels(plain: str, url: str) -> Clients:
    hosts, path, settings = _parts_of(plain, SENTINEL_PORT)
    master, _, database = path.partition("/")
    if not master or not (database or "0").isdecimal():
        raise ValueError(
            f"the journal's address {without_secrets(url)!r} does not name the master of the "
            "sentinels; write redis+sentinel://HOST:PORT/MASTER, or .../MASTER/DB"
        )
    settings = {"db": int(database or 0), **settings}
    most = settings.pop("max_connections", None)
    (SSLConnection if settings.get("ssl") else Connection)(
        **{name: value for name, value in settings.items() if name != "ssl"}
    )  # raises TypeError
    return Clients(partial(_behind_sentinels, hosts, unquote(master), settings), most)


def _of_cluster(plain: str, _: str) -> Clients:
    hosts, _, settings = _parts_of(plain, PORT)

    def make() -> Any:
        nodes = [ClusterNode(host, port) for host, port in hosts]
        client: Any = RedisCluster(startup_nodes=nodes, **settings)
        return client

    make()  # raises TypeError
    return Clients(make, settings.get("max_connections"), is_cluster=True)


def _parts_of(url: str, port: int) -> tuple[list[tuple[str, int]], str, dict[str, Any]]:
    """The hosts of an address, its path without the first stroke, and the client's settings."""
    parts = urlsplit(url)
    user, at, names = parts.netloc.rpartition("@")
    hosts = [urlsplit(f"//{name}") for name in names.split(",")]
    address = f"{parts.scheme}://{user}{at}{hosts[0].netloc}?{parts.query}"
    settings: dict[str, Any] = dict(parse_url(address))
    for name in ("host", "port"):
        settings.pop(name, None)
    if settings.pop("connection_class", None) is not None:
        settings["ssl"] = True
    return (
        [(host.hostname or "localhost", host.port or port) for host in hosts],
        (parts.path.strip("/")),
        settings,
    )


class _BehindSentinels(Redis):
    """A client of the master that sentinels name, which closes its connections to these too."""

    asked: Sentinel

    async def aclose(self, *options: Any) -> None:
        await super().aclose(*options)
        await self.asked.aclose()


def _behind_sentinels(
    hosts: list[tuple[str, int]], master: str, settings: dict[str, Any]
) -> _BehindSentinels:
    sentinel: Any = Sentinel(hosts, **settings)  # type: ignore[no-untyped-call]
    client: _BehindSentinels = sentinel.master_for(master, redis_class=_BehindSentinels)
    client.asked = sentinel
    return client
