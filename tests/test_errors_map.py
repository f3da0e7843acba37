"""Errors on the wire of MCP."""

from __future__ import annotations

import pytest
from mcp.shared.exceptions import MCPError
from mcp_types import HEADER_MISMATCH, INTERNAL_ERROR, INVALID_PARAMS
from structlog.testing import capture_logs

from sidecar.edge.errors_map import jsonrpc_errors
from sidecar.errors import INTERNAL, InvalidRequest, JobNotFound, StorageFailure


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (InvalidRequest("cursor: not one of ours."), (INVALID_PARAMS, "cursor: not one of ours.")),
        (JobNotFound(), (INVALID_PARAMS, JobNotFound().message)),
        (StorageFailure("The store is away."), (INTERNAL_ERROR, "The store is away.")),
        (MCPError(HEADER_MISMATCH, "Another name"), (HEADER_MISMATCH, "Another name")),
    ],
)
def test_what_is_known_is_told_in_its_own_words_and_not_logged(error: Exception, told: tuple[int, str]) -> None:
    with capture_logs() as logged, pytest.raises(MCPError) as caught, jsonrpc_errors("resources/list"):
        raise error
    assert ((caught.value.error.code, caught.value.error.message), logged) == (told, [])


def test_the_unknown_is_logged_whole_and_told_in_general_words() -> None:
    with capture_logs() as logged, pytest.raises(MCPError) as caught, jsonrpc_errors("resources/list"):
        raise ZeroDivisionError("a secret")
    assert (caught.value.error.code, caught.value.error.message) == (INTERNAL_ERROR, INTERNAL)
    assert [(line["event"], line["what"], line["exc_info"]) for line in logged] == [
        ("an MCP request failed", "resources/list", True)
    ]
