"""Where the sidecar writes, and whether there is room."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import PurePath, PurePosixPath
from typing import Any

from sidecar.config import Settings
from tools.manifests.configured import configured, sidecar_of
from tools.manifests.pods import Pod, environment, pods
from tools.manifests.quantities import quantity
from tools.manifests.rendering import Lines, Rendering


def the_store_has_room(rendering: Rendering) -> Lines:
    for pod, settings in configured(rendering):
        name, path = _bounded_path(settings)
        found = volume_at(pod, path)
        if found is None:
            yield f"{pod.title}: {name} {path} is on no volume, and the root is read-only"
            continue
        volume, bound = pod.volumes.get(found, {}), settings.storage.max_bytes
        room = _room(volume, rendering)
        if bound is None or room is None or room <= bound:
            yield f"{pod.title}: the volume {found!r} has {room} bytes, STORAGE_MAX_BYTES is {bound}; it must be less"


def _bounded_path(settings: Settings) -> tuple[str, PurePath]:
    """What STORAGE_MAX_BYTES bounds: the store, or what waits for it."""
    if settings.storage.s3 is not None:
        return "SPOOL_PATH", settings.storage.s3.spool
    return "STORAGE_PATH", settings.storage.path


def volume_at(pod: Pod, path: PurePath) -> str | None:
    """The name of the volume on which the sidecar finds a path."""
    mounts = {mount["mountPath"]: mount["name"] for mount in sidecar_of(pod).get("volumeMounts", [])}
    return next((mounts[str(place)] for place in (path, *path.parents) if str(place) in mounts), None)


def _room(volume: Mapping[str, Any], rendering: Rendering) -> int | None:
    """In bytes; None where nothing is said of it, or nothing that Kubernetes understands."""
    limit = volume.get("emptyDir", {}).get("sizeLimit")
    if claim := volume.get("persistentVolumeClaim"):
        document = rendering.one("PersistentVolumeClaim", claim["claimName"])
        limit = document and document["spec"]["resources"]["requests"]["storage"]
    with suppress(ValueError):
        return quantity(limit) if limit else None
    return None


def a_claim_is_written_by_its_group(rendering: Rendering) -> Lines:
    for pod in pods(rendering):
        store = volume_at(pod, PurePosixPath(environment(sidecar_of(pod), rendering).get("STORAGE_PATH", "/")))
        claimed = "persistentVolumeClaim" in pod.volumes.get(store or "", {})
        context = pod.spec.get("securityContext", {})
        if claimed and "fsGroup" not in context:
            yield f"{pod.title}: has no fsGroup, and the volume {store!r} is root's"
        elif claimed and context.get("fsGroupChangePolicy") != "OnRootMismatch":
            yield f"{pod.title}: no fsGroupChangePolicy OnRootMismatch: every start goes through all files of {store!r}"


def volumes_are_defined_once(rendering: Rendering) -> Lines:
    for pod in pods(rendering):
        names = [volume["name"] for volume in pod.spec.get("volumes", [])]
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield f"{pod.title}: the volume {name!r} is defined {names.count(name)} times"


def volumes_are_disks_that_can_be_written(rendering: Rendering) -> Lines:
    for pod in pods(rendering):
        for mount in sidecar_of(pod).get("volumeMounts", []):
            volume = pod.volumes.get(mount["name"], {})
            given = {*volume} & {"configMap", "secret", "projected"}
            if not given and (mount.get("readOnly") or volume.get("persistentVolumeClaim", {}).get("readOnly")):
                yield f"{pod.title}: the volume {mount['name']!r} is read-only, and the sidecar writes to it"
            if volume.get("emptyDir", {}).get("medium"):
                yield f"{pod.title}: the volume {mount['name']!r} is memory, and counts against the sidecar's limit"


def other_paths_are_writable(rendering: Rendering) -> Lines:
    for pod in pods(rendering):
        mounts = [PurePosixPath(mount["mountPath"]) for mount in sidecar_of(pod).get("volumeMounts", [])]
        spool = environment(sidecar_of(pod), rendering).get("SPOOL_PATH")
        for path in filter(None, ("/tmp", spool)):
            if not any(PurePosixPath(path).is_relative_to(mount) for mount in mounts):
                yield f"{pod.title}: {path} is on no volume, and the root is read-only"
