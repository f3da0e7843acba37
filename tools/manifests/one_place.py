"""Images, models, buckets and hosts are named once, in names.yaml: what is changed there is changed everywhere."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tools.manifests.pods import SIDECAR, Pod, pods
from tools.manifests.rendering import NotRendered, Rendering, rendered


def names_elsewhere(root: Path, folder: Path) -> Iterator[str]:
    """Render a copy with other names, and look for the old ones."""
    with tempfile.TemporaryDirectory() as scratch:
        for part in ("kustomize", "manifests"):
            shutil.copytree(root / part, Path(scratch) / part)
        names = Path(scratch) / folder.relative_to(root) / "names.yaml"
        if not names.exists():
            yield "names.yaml is not there"
            return
        document = yaml.safe_load(names.read_text())
        before = document["data"]
        document["data"] = {key: _renamed(value, index) for index, (key, value) in enumerate(before.items())}
        names.write_text(yaml.safe_dump(document))
        try:
            rendering = rendered(names.parent)
        except NotRendered as error:
            yield str(error)
            return
    text, ours = yaml.safe_dump_all(rendering.documents), rendering.ours  # a team's own files say what they like
    for index, (key, value) in enumerate(before.items()):
        if value in text and ours:
            yield f"names.yaml: {key} is {value!r}, and that stands somewhere else too"
        if _word(index) not in text:
            yield f"names.yaml: {key} goes nowhere"


def _renamed(value: str, index: int) -> str:
    """Of the same form, since a component may take only a part of it."""
    return re.sub(r"[A-Za-z][\w-]*", _word(index), value)


def _word(index: int) -> str:
    return f"word-{index}-of-others"


def different_sidecars(renderings: list[Rendering]) -> Iterator[str]:
    """The sidecar's container is written in several files and must be the same in all."""
    found = [(rendering.name, _without_names(pod)) for rendering in renderings for pod in pods(rendering)]
    for name, container in found[1:]:
        for key in sorted({*container, *found[0][1]}):
            if container.get(key) != found[0][1].get(key):
                yield f"{name}: the sidecar's {key} is not the one of {found[0][0]}"


def _without_names(pod: Pod) -> dict[str, Any]:
    """The container without what an overlay names or brings: images, region, files, the hash in a name."""
    container = pod.container(SIDECAR) or {}
    rest = {key: value for key, value in container.items() if key not in ("image", "envFrom")}
    rest["env"] = [entry for entry in rest.get("env", []) if entry["name"] != "AWS_REGION"]
    rest["envFrom"] = [sorted(source) for source in container.get("envFrom", [])]
    files = {name for name, volume in pod.volumes.items() if "configMap" in volume}
    rest["volumeMounts"] = [mount for mount in rest.get("volumeMounts", []) if mount["name"] not in files]
    return rest
