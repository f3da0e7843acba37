"""The environment, parsed once into frozen groups.

`VARIABLES` is the only list of settings: `read_settings` parses by it, `mcp-image-sidecar config` prints it, and
the table in docs/reference.md is generated from it.
"""

from sidecar.config.groups import GROUPS, misspelt
from sidecar.config.parsers import DURATION_ALLOWED, has_credentials, positive_duration, without_credentials
from sidecar.config.reading import SettingRow, read_settings, setting_rows
from sidecar.config.settings import (
    JobSettings,
    ListenSettings,
    LogSettings,
    ModelSettings,
    ResultMode,
    S3Settings,
    Secret,
    Settings,
    StorageSettings,
    is_loopback,
    own_address,
)
from sidecar.config.variables import VARIABLES, Variable

__all__ = [
    "DURATION_ALLOWED",
    "GROUPS",
    "VARIABLES",
    "JobSettings",
    "ListenSettings",
    "LogSettings",
    "ModelSettings",
    "ResultMode",
    "S3Settings",
    "Secret",
    "SettingRow",
    "Settings",
    "StorageSettings",
    "Variable",
    "has_credentials",
    "is_loopback",
    "misspelt",
    "own_address",
    "positive_duration",
    "read_settings",
    "setting_rows",
    "without_credentials",
]
