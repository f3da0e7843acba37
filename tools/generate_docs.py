"""Write the generated parts of the documents from the code, or with --check say whether they are up to date.

A part, mostly a table, stands between `<!-- table: NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from sidecar.app import create_app
from sidecar.cli import build_parser
from sidecar.clients import ClientConfiguration, client_configurations, more_configurations
from sidecar.config import VARIABLES, read_settings
from sidecar.core.generation_queue import ModelQueue
from sidecar.edge.tools import TOOLS
from sidecar.observe.exposition import Description
from sidecar.observe.metrics import Metrics
from sidecar.ports import SystemClock

ROOT = Path(__file__).resolve().parent.parent
PAGES = (ROOT / "README.md", ROOT / "docs" / "reference.md", ROOT / "docs" / "clients.md")
MCP_URL = "http://localhost:8000/mcp"
_TABLE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def _rows(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def commands() -> str:
    group: Any = build_parser()._subparsers
    (subparsers,) = group._group_actions
    rows = ((f"`{choice.dest}`", choice.help or "") for choice in subparsers._choices_actions)
    return _rows(("command", "does"), rows)


def settings() -> str:
    rows = (
        (
            f"`{variable.name}`" + (f", `{variable.name}_FILE`" if variable.secret else ""),
            f"`{variable.default}`" if variable.default else "–",
            variable.unit,
            f"{variable.meaning} Allowed: {variable.allowed}.",
        )
        for variable in VARIABLES
    )
    return _rows(("variable", "default", "unit", "meaning"), rows)


def routes() -> str:
    router = create_app(read_settings({})).router
    found = {(route.method, route.resource.canonical) for route in router.routes() if route.resource is not None}
    rows = (
        (f"`{path}`", ", ".join(sorted(method for method, other in found if other == path)))
        for path in sorted({p for _, p in found})
    )
    return _rows(("route", "methods"), rows)


def tools() -> str:
    rows = (
        (
            f"`{tool.definition.name}`",
            f"`{name}`" + (" (required)" if name in tool.definition.input_schema.get("required", ()) else ""),
            field["description"],
            tool.arguments.allowed[name],
        )
        for tool in TOOLS
        for name, field in tool.definition.input_schema["properties"].items()
    )
    return _rows(("tool", "argument", "meaning", "allowed"), rows)


def exposed_metrics() -> dict[str, Description]:
    """Every metric of the sidecar by the name that queries call it."""
    queue = ModelQueue(concurrency=1, limit=1, clock=SystemClock())
    described = Metrics({"MODEL": queue}, "file").exposition.described()
    return {f"{metric.name}_total" if metric.kind == "counter" else metric.name: metric for metric in described}


def metrics() -> str:
    rows = (
        (f"`{name}`", metric.kind, ", ".join(metric.labels) or "–", metric.documentation)
        for name, metric in exposed_metrics().items()
    )
    return _rows(("metric", "type", "labels", "meaning"), rows)


def connect() -> str:
    """The chat hosts of `clients` as one table, for the README."""
    return _rows(("client", "what to do"), (_line(configuration) for configuration in client_configurations(MCP_URL)))


def _line(configuration: ClientConfiguration) -> tuple[str, str]:
    anchor = configuration.name.lower().replace(" ", "-")
    texts = (f"`{text}`" for text in configuration.text.splitlines())
    return f"[{configuration.name}](docs/clients.md#{anchor})", "<br>".join((configuration.how, *texts))


def clients() -> str:
    configurations = (*client_configurations(MCP_URL), *more_configurations(MCP_URL))
    return "\n".join(_section(configuration) for configuration in configurations)


def _section(configuration: ClientConfiguration) -> str:
    link = f"\n    {configuration.link}\n" if configuration.link else ""
    fence = f"```{configuration.language}\n{configuration.text}\n```\n"
    return f"## {configuration.name}\n\n{configuration.how}\n\n{fence}{link}"


TABLES: dict[str, Callable[[], str]] = {
    "commands": commands,
    "settings": settings,
    "routes": routes,
    "tools": tools,
    "metrics": metrics,
    "connect": connect,
    "clients": clients,
}


def rendered(page: str) -> str:
    """The page with every generated part made anew."""
    return _TABLE.sub(lambda match: match[1] + TABLES[match[2]]() + match[3], page)


def main() -> None:
    stale = []
    for path in PAGES:
        before = path.read_text(encoding="utf-8")
        after = rendered(before)
        if before == after:
            continue
        stale.append(path.relative_to(ROOT))
        if "--check" not in sys.argv:
            path.write_text(after, encoding="utf-8")
            print(f"wrote {path.relative_to(ROOT)}")
    if stale and "--check" in sys.argv:
        sys.exit(f"not up to date, run `make docs`: {', '.join(map(str, stale))}")


if __name__ == "__main__":
    main()
