"""The sidecar's container in a pod, and the settings that it makes of its environment."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from sidecar.config import VARIABLES, Settings, read_settings
from sidecar.errors import BadConfiguration
from tools.manifests.pods import SIDECAR, Pod, environment, pods
from tools.manifests.rendering import Rendering

KNOWN = frozenset(
    name for variable in VARIABLES for name in (variable.name, *([f"{variable.name}_FILE"] if variable.secret else []))
)


def sidecar_of(pod: Pod) -> dict[str, Any]:
    return pod.container(SIDECAR) or {}


def settings_of(pod: Pod, rendering: Rendering) -> Settings:
    """Raises BadConfiguration."""
    given = {name: value for name, value in environment(sidecar_of(pod), rendering).items() if name in KNOWN}
    with TemporaryDirectory() as scratch:
        text = _mounted(pod, PurePosixPath(given.get("MODELS_FILE", "/")), rendering)
        if text is not None:
            file = Path(scratch) / "models.yaml"
            file.write_text(text, encoding="utf-8")
            given["MODELS_FILE"] = str(file)
        return read_settings(given)


def _mounted(pod: Pod, path: PurePosixPath, rendering: Rendering) -> str | None:
    """What the sidecar finds at a path that a ConfigMap is mounted at."""
    for mount in sidecar_of(pod).get("volumeMounts", []):
        source = pod.volumes.get(mount["name"], {}).get("configMap", {})
        config = rendering.one("ConfigMap", source.get("name", ""))
        if config is not None and str(path.parent) == mount["mountPath"]:
            found: str | None = config.get("data", {}).get(path.name)
            return found
    return None


def configured(rendering: Rendering) -> Iterator[tuple[Pod, Settings]]:
    """Pods whose environment the sidecar accepts; the others have a line of their own."""
    for pod in pods(rendering):
        try:
            yield pod, settings_of(pod, rendering)
        except BadConfiguration:
            continue
