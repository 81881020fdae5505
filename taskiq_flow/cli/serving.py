"""Serves the pages of the runs of a journal. Imports the web only when it is asked for."""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

from taskiq_flow.cli.exits import Code, CommandError
from taskiq_flow.cli.flows import flow_at
from taskiq_flow.cli.history import reader_of
from taskiq_flow.cli.output import show
from taskiq_flow.cli.running import EngineOptions, connected
from taskiq_flow.cli.signals import Signals
from taskiq_flow.journal.protocol import stores_events

ANY_ADDRESS = ("0.0.0.0", "::")  # noqa: S104 - recognized, and not listened at


@dataclass(frozen=True, slots=True)
class Address:
    """Where pages are served, and to whom. ``hosts``: further names that they are opened by."""

    host: str
    port: int
    token: str | None
    hosts: Sequence[str]


async def serve_runs(
    journal: str, flows: Sequence[str], address: Address, options: EngineOptions, *, control: bool
) -> Code:
    """Serve the runs of a journal until a signal, and write the address once it can be opened.

    ``options``: of the engines that run ``flows``, with ``control``. Raises ``CommandError`` if
    nothing can be served at the address, ``ConfigurationError`` without the extra ``web``, and
    ``GraphError`` for a graph that cannot run.
    """
    found = [flow_at(where) for where in flows]
    for flow in found:
        flow.dag.validate()
    from taskiq_flow.web.app import runs_app  # noqa: PLC0415 - needs the extra web
    from taskiq_flow.web.guard import LOCAL_HOSTS  # noqa: PLC0415 - as above
    from taskiq_flow.web.server import is_local, serve_async  # noqa: PLC0415 - as above

    host = address.host
    token = address.token
    if token is None and not is_local(host):
        token = secrets.token_urlsafe()
    name = socket.gethostname() if host in ANY_ADDRESS else host
    engines = {f.dag.name or f.where: options.engine(f) for f in found} if control else {}
    async with AsyncExitStack() as stack:
        reader = await stack.enter_async_context(reader_of(journal))
        if engines and stores_events(reader.journal):
            await reader.journal.summaries(limit=1)  # makes a file that is not there yet
        await reader.runs(limit=1)  # refuses what is no journal
        try:
            app = runs_app(
                reader,
                control=control,
                token=token,
                allowed_hosts=[*LOCAL_HOSTS, name, *address.hosts],
                engines=engines,
                dags={flow.dag.name or flow.where: flow.dag for flow in found},
            )
        except ValueError as error:
            raise CommandError(str(error)) from None

        def tell(url: str) -> None:
            port = url.rpartition(":")[2]
            shown = f"[{name}]" if ":" in name else name
            show(f"http://{shown}:{port}" + ("" if token is None else f"/#token={token}"))

        brokers = {id(e.options["broker"]): e.options["broker"] for e in engines.values()}
        for broker in brokers.values():
            await stack.enter_async_context(connected(broker))
        serving = serve_async(app, host, address.port, on_ready=tell)
        return await _until_a_signal(serving, address)


async def _until_a_signal(serving: Coroutine[object, object, None], address: Address) -> Code:
    signals = Signals()
    try:
        with signals:
            await serving
    except asyncio.CancelledError:
        if signals.code is None:
            raise
    except BrokenPipeError:
        raise
    except OSError as error:
        raise CommandError(
            f"nothing can be served at {address.host!r}, port {address.port}: {error}; give "
            "another --host, or another --port (0 is a free one)"
        ) from None
    return signals.code or Code.COMPLETED
