"""Which scenarios of the conformance tool apply to any server, and why the others do not."""

from __future__ import annotations

from fnmatch import fnmatchcase

STABLE, NEXT = "conformance-0.1.16", "conformance-0.2.0-alpha.12"
"""The two releases, as the folders they are installed in: the first for the handshake era, the second for both."""

_JUNE_2025, _NOVEMBER_2025, _JULY_2026 = "2025-06-18", "2025-11-25", "2026-07-28"
_HANDSHAKE = (_JUNE_2025, _NOVEMBER_2025)
_ALL = (*_HANDSHAKE, _JULY_2026)

GENERIC: dict[str, tuple[str, ...]] = {
    "server-initialize": _HANDSHAKE,
    "ping": _HANDSHAKE,
    "tools-list": _ALL,
    "resources-list": _ALL,
    "prompts-list": _ALL,
    "completion-complete": _ALL,
    "dns-rebinding-protection": (_NOVEMBER_2025, _JULY_2026),
    "server-sse-multiple-streams": (_NOVEMBER_2025, _JULY_2026),
    "server-stateless": (_JULY_2026,),
    "caching": (_JULY_2026,),
    "http-header-validation": (_JULY_2026,),
    "sep-2164-resource-not-found": (_JULY_2026,),
    "input-required-result-unsupported-methods": (_JULY_2026,),
}
"""Every scenario that any server can pass, with the revisions of the specification that it is about."""

_OUT = {
    "tools-call-*": "calls tools that only a server made for the tool has",
    "json-schema-2020-12": "wants a tool of its own with a schema full of keywords",
    "elicitation-*": "calls tools of its own that ask the user",
    "input-required-result-*": "calls tools of its own that ask the user",
    "tasks-*": "calls tools of its own that become tasks",
    "resources-read-*": "reads resources of its own",
    "resources-templates-read": "reads a resource of its own",
    "resources-*subscribe": "subscribes to a resource of its own",
    "prompts-get-*": "gets prompts of its own",
    "http-custom-header-server-validation": "wants a tool whose arguments are mirrored in headers",
    "logging-set-level": "is about log messages to the client, which this server does not offer",
    "server-session-lifecycle": "is about sessions, and this server is stateless",
    "server-sse-polling": "is about resuming a session's stream, and this server is stateless",
    "sep-2640-*": "is about skills, which this server does not offer",
}

_SUBSCRIPTIONS = (
    "sep-2575-server-sends-subscription-ack",
    "sep-2575-server-tags-subscription-id",
    "sep-2575-server-honors-notification-filter",
    "sep-2575-server-sends-prompts-list-changed-on-subscription",
    "sep-2575-server-sends-tools-list-changed-on-subscription",
)
_DIAGNOSTIC_TOOLS = (
    "sep-2575-server-rejects-undeclared-capability",
    "sep-2575-missing-capability-http-400",
    "sep-2575-http-server-no-independent-requests-on-stream",
    "sep-2575-server-no-log-without-loglevel",
)


def why_out(scenario: str) -> str | None:
    """Why a scenario is none of ours; None where nobody has said so."""
    return next((reason for pattern, reason in _OUT.items() if fnmatchcase(scenario, pattern)), None)


def exceptions(scenario: str, revision: str) -> dict[str, str]:
    """The checks that a stateless server with its own tools cannot turn green, and what the tool says of them."""
    if scenario == "server-stateless":
        # Some checks need diagnostic tools, others a server whose lists change while it runs.
        return dict.fromkeys(_DIAGNOSTIC_TOOLS, "UNTESTABLE") | dict.fromkeys(_SUBSCRIPTIONS, "SKIPPED")
    if scenario == "server-sse-multiple-streams" and revision != _JULY_2026:
        return {"server-sse-multiple-streams-session": "WARNING"}  # without sessions it has nothing to look at
    return {}
