"""The commands and their options."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, NoReturn, get_args

import typer

from taskiq_flow.cli import history
from taskiq_flow.cli.exits import Code, exit_with, texts_of_typer
from taskiq_flow.cli.flows import Flow, flow_at
from taskiq_flow.cli.graphs import GraphFormat, show_graph, validate_graph
from taskiq_flow.cli.help import Command, Group
from taskiq_flow.cli.inputs import read_inputs
from taskiq_flow.cli.output import Results, say
from taskiq_flow.cli.running import Begin, EngineOptions, run_to_its_end
from taskiq_flow.cli.serving import Address, serve_runs
from taskiq_flow.cli.signals import heed_signals
from taskiq_flow.engine.run_spec import OnError
from taskiq_flow.journal.moments import moment_of, period_of
from taskiq_flow.journal.summary import RunState
from taskiq_flow.version import __version__

JOURNAL_VARIABLE = "TASKIQ_FLOW_JOURNAL"
TOKEN_VARIABLE = "TASKIQ_FLOW_TOKEN"

app = typer.Typer(
    name="taskiq-flow",
    cls=Group,
    help="Run graphs of tasks, and see, stop and continue their runs.",
    epilog=(
        "Exit codes: 0 completed, 1 a node failed, 2 wrong usage, 3 graph or inputs refused, 4 no "
        "such run, 5 broker or journal not reachable or locked, 124 time limit, 129, 130 or 143 "
        "cancelled, 141 nobody reads the output."
    ),
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _period(text: str) -> timedelta:
    try:
        return period_of(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _moment(text: str) -> datetime:
    try:
        return moment_of(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _positive(seconds: float | None) -> float | None:
    if seconds is not None and seconds <= 0:
        raise typer.BadParameter(f"{seconds:g} is no time limit; give seconds above 0")
    return seconds


def _not_empty(name: str | None) -> str | None:
    if name is not None and not name.strip():
        raise typer.BadParameter("it is empty; give a name, or leave it out")
    return name


def _all_of(words: Any) -> str:
    """The words of a ``Literal``, as help lists them."""
    *others, last = get_args(words)
    return f"{', '.join(others)} or {last}"


FlowName = Annotated[
    str,
    typer.Argument(
        metavar="MODULE:NAME",
        help="A graph, a builder, an engine, or a function that returns one.",
        show_default=False,
    ),
]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="A run id.", show_default=False)]
InputTexts = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        "-i",
        metavar="KEY=VALUE",
        help="An input, read as the annotation of its parameter says.",
    ),
]
InputDocuments = Annotated[
    list[str] | None, typer.Option(metavar="KEY=JSON", help="An input, written as JSON.")
]
InputFile = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="A JSON object of inputs; - is standard input."),
]
Broker = Annotated[
    str | None,
    typer.Option(metavar="MODULE:NAME", help="The broker. By default that of the graph's tasks."),
]
Journal = Annotated[
    str | None,
    typer.Option(
        metavar="PATH",
        envvar=JOURNAL_VARIABLE,
        help="Where runs are stored: a file, or redis://HOST?prefix=KEYS.",
    ),
]
MaxParallel = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="How many nodes are in flight at most.")
]
WhenNodesFail = Annotated[
    OnError | None,
    typer.Option(metavar="HOW", help=f"What happens when a node fails: {_all_of(OnError)}."),
]
Timeout = Annotated[
    float | None,
    typer.Option(metavar="SECONDS", callback=_positive, help="How long the run may take."),
]
Tags = Annotated[
    list[str] | None, typer.Option("--tag", metavar="TAG", help="By which runs are found.")
]
EventLines = Annotated[
    bool, typer.Option("--json-lines", help="Write its events, one JSON object a line.")
]
JsonLines = Annotated[bool, typer.Option("--json-lines", help="Write JSON, one object a line.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]
AllowChanged = Annotated[
    bool,
    typer.Option(
        "--allow-changed", help="Keep what nodes have given that are as they were, and run others."
    ),
]


def _execute(
    flow: str,
    run_id: str,
    options: EngineOptions,
    begin: Callable[[Flow], Begin],
    *,
    json_lines: bool,
    quiet: bool,
) -> NoReturn:
    """Run a flow again; ``begin`` says how. ``run_id``: of the first run."""

    async def command() -> Code:
        if options.journal is not None:
            async with history.reader_of(options.journal) as reader:
                await reader.run(run_id)
        results, found = Results(json_lines=json_lines), flow_at(flow)
        given = await history.as_begun(run_id, found, options)
        return await run_to_its_end(found, given, begin(found), results, quiet=quiet)

    exit_with(command())


@app.command(cls=Command)
def run(
    flow: FlowName,
    inputs: InputTexts = None,
    input_json: InputDocuments = None,
    input_file: InputFile = None,
    output: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY", help="Run only what this output needs."),
    ] = None,
    run_id: Annotated[
        str | None, typer.Option(metavar="RUN", callback=_not_empty, help="Names the run.")
    ] = None,
    tag: Tags = None,
    broker: Broker = None,
    journal: Journal = None,
    max_parallel: MaxParallel = None,
    on_error: WhenNodesFail = None,
    timeout: Timeout = None,
    json_lines: JsonLines = False,
    quiet: Quiet = False,
) -> None:
    """Run a graph, and write its results as they come."""

    async def command() -> Code:
        found = flow_at(flow)
        given = read_inputs(found.dag, inputs or [], input_json or [], input_file)
        name = found.run_id if run_id is None else run_id
        return await run_to_its_end(
            found,
            EngineOptions(broker, journal, max_parallel, on_error, timeout, tag or ()),
            lambda engine: engine.execute_async(given, outputs=output or None, run_id=name),
            Results(json_lines=json_lines),
            new_run_id=name,
            quiet=quiet,
        )

    exit_with(command())


@app.command(cls=Command)
def graph(
    flow: FlowName,
    form: Annotated[
        GraphFormat,
        typer.Option("--format", "-f", metavar="FORMAT", help=f"As {_all_of(GraphFormat)}."),
    ] = "text",
) -> None:
    """Draw a graph."""
    exit_with(show_graph(flow, form))


@app.command(cls=Command)
def validate(flow: FlowName) -> None:
    """Check a graph and the annotations of its tasks."""
    exit_with(validate_graph(flow))


@app.command(cls=Command)
def runs(
    status: Annotated[
        RunState | None,
        typer.Option(metavar="STATUS", help=f"Only such runs: {_all_of(RunState)}."),
    ] = None,
    name: Annotated[str | None, typer.Option(metavar="GRAPH", help="Only of this graph.")] = None,
    tag: Annotated[
        list[str] | None,
        typer.Option(metavar="TAG", help="Only with this tag, or these."),
    ] = None,
    since: Annotated[
        Any, typer.Option(metavar="TIME", parser=_moment, help="Started since: 2h, or a date.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="How many at most.")] = 20,
    journal: Journal = None,
    json_lines: JsonLines = False,
) -> None:
    """List runs, the newest first."""
    exit_with(
        history.list_runs(
            _journal(journal),
            status=status,
            name=name,
            tags=tag or [],
            since=since,
            limit=limit,
            json_lines=json_lines,
        )
    )


@app.command(cls=Command)
def show(
    run: RunName,
    report: Annotated[bool, typer.Option("--report", help="What held the run back.")] = False,
    trace: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write its times for ui.perfetto.dev."),
    ] = None,
    journal: Journal = None,
    json_lines: EventLines = False,
) -> None:
    """Show a run: its nodes, and the errors of those that failed."""
    if sum((report, trace is not None, json_lines)) > 1:
        raise typer.BadParameter("give one of --report, --trace and --json-lines")
    exit_with(
        history.show_run(
            _journal(journal),
            run,
            as_what="report" if report else "events" if json_lines else "state",
            trace=trace,
        )
    )


@app.command(cls=Command)
def watch(
    run: RunName,
    journal: Journal = None,
    json_lines: EventLines = False,
    quiet: Quiet = False,
) -> None:
    """Follow a run of any process, and exit with its code."""
    exit_with(history.watch_run(_journal(journal), run, json_lines=json_lines, quiet=quiet))


@app.command(cls=Command)
def resume(
    run: RunName,
    flow: FlowName,
    broker: Broker = None,
    journal: Journal = None,
    allow_changed: AllowChanged = False,
    wait: Annotated[
        float,
        typer.Option(min=0, metavar="SECONDS", help="How long to wait for an engine that has it."),
    ] = 0.0,
    max_parallel: MaxParallel = None,
    on_error: WhenNodesFail = None,
    timeout: Timeout = None,
    tag: Tags = None,
    json_lines: JsonLines = False,
    quiet: Quiet = False,
) -> None:
    """Continue a run that was stopped, and write all of its results."""
    options = EngineOptions(broker, journal, max_parallel, on_error, timeout, tag or ())

    def begin(found: Flow) -> Begin:
        return lambda engine: engine.resume(run, allow_changed=allow_changed, wait=wait)

    _execute(flow, run, options, begin, json_lines=json_lines, quiet=quiet)


@app.command(cls=Command)
def rerun(
    run: RunName,
    flow: FlowName,
    from_: Annotated[
        list[str] | None,
        typer.Option("--from", metavar="NODE", help="What runs again, with all behind it."),
    ] = None,
    inputs: InputTexts = None,
    input_json: InputDocuments = None,
    input_file: InputFile = None,
    new_run_id: Annotated[
        str | None, typer.Option(metavar="RUN", callback=_not_empty, help="Names the new run.")
    ] = None,
    broker: Broker = None,
    journal: Journal = None,
    allow_changed: AllowChanged = False,
    max_parallel: MaxParallel = None,
    on_error: WhenNodesFail = None,
    timeout: Timeout = None,
    tag: Tags = None,
    json_lines: JsonLines = False,
    quiet: Quiet = False,
) -> None:
    """Run parts of an earlier run again as a new one."""
    if not (from_ or inputs or input_json or input_file):
        raise typer.BadParameter("nothing says what runs again; give --from, --input or both")
    options = EngineOptions(broker, journal, max_parallel, on_error, timeout, tag or ())

    def begin(found: Flow) -> Begin:
        given = read_inputs(found.dag, inputs or [], input_json or [], input_file)
        return lambda engine: engine.rerun(
            run, from_ or [], allow_changed=allow_changed, new_run_id=new_run_id, inputs=given
        )

    _execute(flow, run, options, begin, json_lines=json_lines, quiet=quiet)


@app.command(cls=Command)
def cancel(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Run ids.", show_default=False)
    ],
    journal: Journal = None,
) -> None:
    """Stop runs of any process, and wait until they have."""
    exit_with(history.cancel_runs(_journal(journal), runs))


@app.command(cls=Command)
def delete(
    runs: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN...]", help="Run ids.", show_default=False)
    ] = None,
    older_than: Annotated[
        Any,
        typer.Option(metavar="PERIOD", parser=_period, help="Runs that ended before: 12h, 30d."),
    ] = None,
    keep: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="All but the newest so many.")
    ] = None,
    name: Annotated[str | None, typer.Option(metavar="GRAPH", help="Only of this graph.")] = None,
    journal: Journal = None,
) -> None:
    """Delete runs, but none that is in progress."""
    exit_with(
        history.delete_runs(
            _journal(journal), runs or [], older_than=older_than, keep=keep, name=name
        )
    )


@app.command(cls=Command)
def serve(
    flows: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODULE:NAME",
            help="Graphs that are drawn whole, and run with --control.",
            show_default=False,
        ),
    ] = None,
    broker: Broker = None,
    journal: Journal = None,
    max_parallel: MaxParallel = None,
    on_error: WhenNodesFail = None,
    timeout: Timeout = None,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="What is listened at.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65_535, metavar="PORT", help="0 is one that is free.")
    ] = 8421,
    control: Annotated[
        bool, typer.Option("--control", help="Runs can be begun, stopped, and so on.")
    ] = False,
    token: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            envvar=TOKEN_VARIABLE,
            help="Who does not have it sees nothing. For other addresses, by default a new one.",
            show_default=False,
        ),
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A further name that the page is opened by."),
    ] = None,
) -> None:
    """Show runs in the browser, until Ctrl-C."""
    address = Address(host, port, token, allowed_host or [])
    options = EngineOptions(broker, None, max_parallel, on_error, timeout)
    exit_with(serve_runs(_journal(journal), flows or [], address, options, control=control))


def _journal(given: str | None) -> str:
    if given is None:
        raise typer.BadParameter(
            f"no journal is named; give --journal runs.db, or set {JOURNAL_VARIABLE}"
        )
    return given


def _version(asked: bool) -> None:  # noqa: FBT001 - typer's signature
    if asked:
        typer.echo(f"taskiq_flow {__version__}")
        raise typer.Exit


@app.callback()
def _of_all(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Run graphs of tasks, and see, stop and continue their runs."""
    warnings.showwarning = _show_warning  # type: ignore[assignment]  # it names what it uses
    if not logging.root.handlers:  # taskiq logs each exception of a task, which is shown later on
        logging.getLogger("taskiq").setLevel(logging.CRITICAL)


def _show_warning(message: Warning | str, *_: Any) -> None:
    say(f"warning: {message}", style="yellow")


def main(arguments: list[str] | None = None) -> None:
    """Do what the command line says, and exit."""
    heed_signals()
    with texts_of_typer():
        app(arguments, prog_name="taskiq-flow")
