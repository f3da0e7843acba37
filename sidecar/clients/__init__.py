"""How each client is told about this server: one place for the demonstration, docs/clients.md and the README."""

from sidecar.clients.chat import client_configurations
from sidecar.clients.form import ClientConfiguration, Program, for_terminal, this_program
from sidecar.clients.more import more_configurations

__all__ = [
    "ClientConfiguration",
    "Program",
    "client_configurations",
    "for_terminal",
    "more_configurations",
    "this_program",
]
