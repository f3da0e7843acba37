"""The commands. Only this file reads the process's environment and arguments; all others are handed what they need."""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import logging
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

from sidecar import __version__
from sidecar.config import GROUPS, SettingRow, Settings, misspelt, own_address, read_settings, setting_rows
from sidecar.errors import BadConfiguration
from sidecar.process import StopSignals, leave

EXIT_BAD_CONFIGURATION = 2


def main(arguments: Sequence[str] | None = None) -> None:
    """The console command `mcp-image-sidecar`."""
    options = build_parser().parse_args(arguments)
    try:
        code = options.command(options, os.environ)
        sys.stdout.flush()
    except BadConfiguration as error:
        for problem in error.problems:
            print(f"mcp-image-sidecar: {problem}", file=sys.stderr)
        code = EXIT_BAD_CONFIGURATION
    except BrokenPipeError:  # as in `config | head`: the reader has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except KeyboardInterrupt:
        code = 130
    except Exception:
        logging.getLogger("sidecar").critical("the command crashed", exc_info=True)
        code = 1
    leave(code)


def build_parser() -> argparse.ArgumentParser:
    """The command line, also for the generated reference."""
    parser = argparse.ArgumentParser(
        prog="mcp-image-sidecar", description="An MCP server beside a KServe diffusers runtime."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add(commands, "serve", _serve, "run the sidecar from the environment")
    demo = _add(
        commands,
        "demo",
        _demo,
        "start an embedded painter (no diffusion model) and the sidecar, make one image through MCP",
    )
    demo.add_argument("--once", action="store_true", help="stop after the image")
    demo.add_argument("--clients", action="store_true", help="also print what connects each MCP client")
    stdio = _add(
        commands, "stdio", _stdio, "the MCP server on standard input and output, images on a free loopback port"
    )
    stdio.add_argument("--demo", action="store_true", help="with the demonstration's painter in place of a model")
    _add(commands, "sweep", _sweep, "one clean-up pass, its result as one JSON line")
    migrate = "copy images and ended generations of STORAGE_PATH to the bucket, resumable, verified by digest"
    _add(commands, "migrate", _migrate, migrate)
    lifecycle = "print the bucket lifecycle rule that deletes what no sweep has deleted, as JSON"
    _add(commands, "lifecycle", _lifecycle, lifecycle)
    config = _add(commands, "config", _config, "every setting: variable, effective value, default, unit, meaning")
    config.add_argument("--format", choices=("table", "json"), default="table")
    config.add_argument("--changed", action="store_true", help="only what is set here and differs from its default")
    _add(commands, "healthcheck", _healthcheck, "exit 0 when a sidecar running on this machine is ready, else 1")
    return parser


Command = Callable[[argparse.Namespace, Mapping[str, str]], int]


def _add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, command: Command, text: str
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text)
    parser.set_defaults(command=command)
    return parser


def _serve(_options: argparse.Namespace, environment: Mapping[str, str]) -> int:
    signals = StopSignals().install()
    settings = _ready_to_log(environment)
    from sidecar.observe.tracing import exported_traces
    from sidecar.serving import serve

    with exported_traces(environment):
        asyncio.run(serve(settings, signals))
    return 0


def _ready_to_log(environment: Mapping[str, str]) -> Settings:
    settings = read_settings(environment)
    from sidecar.observe.logs import configure_logging

    configure_logging(settings.log)
    return settings


def _demo(options: argparse.Namespace, environment: Mapping[str, str]) -> int:
    signals = StopSignals().install()
    from sidecar.demo.run import demo

    return asyncio.run(demo(environment, signals, once=options.once, clients=options.clients))


def _stdio(options: argparse.Namespace, environment: Mapping[str, str]) -> int:
    signals = StopSignals().install()
    if options.demo:
        from sidecar.demo.on_stdio import serve_demo_on_stdio

        asyncio.run(serve_demo_on_stdio(environment, signals))
        return 0
    settings = _ready_to_log(environment)
    from sidecar.stdio import on_loopback, serve_stdio

    asyncio.run(serve_stdio(on_loopback(settings), signals))
    return 0


def _sweep(_options: argparse.Namespace, environment: Mapping[str, str]) -> int:
    settings = _ready_to_log(environment)
    report = asyncio.run(_sweep_once(settings))
    print(json.dumps(report))
    return 1 if report["errors"] or report["skipped"] else 0


async def _sweep_once(settings: Settings) -> dict[str, object]:
    from sidecar.core.sweeper import Sweeper
    from sidecar.observe.logs import EventLog
    from sidecar.ports import SystemClock
    from sidecar.storages.opening import opened_store

    clock, observer = SystemClock(), EventLog()
    async with opened_store(settings.storage, clock=clock, observer=observer, sends=False) as storage:
        sweeper = Sweeper(
            storage, storage.jobs, interval=settings.storage.cleanup_interval, clock=clock, observer=observer
        )
        return asdict(await sweeper.sweep())


def _migrate(_options: argparse.Namespace, environment: Mapping[str, str]) -> int:
    settings = _ready_to_log(environment)
    if settings.storage.s3 is None:
        raise BadConfiguration(["STORAGE_BACKEND: 'file' was given; allowed to migrate: s3, the bucket to copy to"])
    return asyncio.run(_migrate_all(settings))


async def _migrate_all(settings: Settings) -> int:
    from sidecar.observe.logs import EventLog
    from sidecar.ports import SystemClock
    from sidecar.storages.opening import migrated

    clock, observer = SystemClock(), EventLog()
    report, notes = await migrated(settings.storage, clock=clock, observer=observer)
    for note in notes:
        print(f"mcp-image-sidecar: {note}", file=sys.stderr)
    print(json.dumps(asdict(report)))
    return 1 if report.failed else 0


def _lifecycle(_options: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """For `aws s3api put-bucket-lifecycle-configuration` and its like."""
    settings = read_settings(environment)
    if settings.storage.s3 is None:
        raise BadConfiguration(["STORAGE_BACKEND: 'file' was given; allowed with a lifecycle rule: s3"])
    from sidecar.storages.lifecycle import lifecycle_rules

    print(json.dumps(lifecycle_rules(settings.storage, settings.storage.s3.prefix, settings.jobs.ttl), indent=2))
    return 0


def _config(options: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Print first, judge afterwards: the table is what one looks at when the start was refused."""
    rows = [row for row in setting_rows(environment) if row.changed or not options.changed]
    if options.format == "json":
        print(json.dumps({row.variable.name: row.effective for row in rows}, indent=2))
    else:
        _print_settings(rows)
    sys.stdout.flush()
    for name, right in misspelt(environment).items():
        print(f"mcp-image-sidecar: {name} is set, but is no setting; did you mean {right}?", file=sys.stderr)
    read_settings(environment)
    return 0


def _print_settings(rows: Sequence[SettingRow]) -> None:
    width = max(60, shutil.get_terminal_size((100, 24)).columns)
    by_name = {row.variable.name: row for row in rows}
    for group, names in GROUPS.items():
        in_group = [by_name[name] for name in names if name in by_name]
        if in_group:
            print(f"# {group}\n")
        for row in in_group:
            variable = row.variable
            print(f"{variable.name} = {row.effective}")
            print(f"    default {variable.default or '–'}, {variable.unit}; allowed: {variable.allowed}")
            print(textwrap.fill(variable.meaning, width, initial_indent="    ", subsequent_indent="    "))
        if in_group:
            print()


def _healthcheck(_options: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Ask /readyz where LISTEN_HOST's first address is reached; on METRICS_LISTEN_PORT where it is set."""
    listen = read_settings(environment).listen
    host, port = own_address(listen.hosts[0]), listen.metrics_port or listen.port
    connection = http.client.HTTPConnection(host, port, timeout=3)
    try:
        connection.request("GET", "/readyz")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        print(f"not reachable at {host}:{port}: {error!r}", file=sys.stderr)
        return 1
    finally:
        connection.close()
    return 0 if status == 200 else 1
