"""What a pod may do on its node: the restricted Pod Security Standard."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tools.manifests.configured import sidecar_of
from tools.manifests.pods import INITIALIZER, pods
from tools.manifests.rendering import Lines, Rendering, title

_RESTRICTED: tuple[tuple[str, Callable[[Mapping[str, Any]], bool]], ...] = (
    ("runAsNonRoot: true", lambda context: context.get("runAsNonRoot") is True),
    ("allowPrivilegeEscalation: false", lambda context: context.get("allowPrivilegeEscalation") is False),
    ("privileged: false", lambda context: context.get("privileged") in (None, False)),
    ("capabilities.add: nothing", lambda context: not context.get("capabilities", {}).get("add")),
    ("capabilities.drop: [ALL]", lambda context: context.get("capabilities", {}).get("drop") == ["ALL"]),
    ("seccompProfile: RuntimeDefault", lambda context: context.get("seccompProfile") == {"type": "RuntimeDefault"}),
    ("readOnlyRootFilesystem: true", lambda context: context.get("readOnlyRootFilesystem") is True),
    ("a runAsUser other than 0", lambda context: context.get("runAsUser", 0) != 0),
)


def containers_are_restricted(rendering: Rendering) -> Lines:
    """In a namespace of ours all but KServe's own, which the cluster describes; in another's pod what we add."""
    for pod in pods(rendering):
        ours = [container for container in pod.all_containers if container.get("name") != INITIALIZER]
        for container in ours if rendering.ours else [sidecar_of(pod)]:
            context = container.get("securityContext", {})
            for what, holds in _RESTRICTED:
                if not holds(context):
                    yield f"{pod.title}: {container.get('name')} lacks securityContext {what}"


def nothing_of_the_node_is_shared(rendering: Rendering) -> Lines:
    """In another's pod that is for its owner to say, but for the sidecar's own ports."""
    for pod in pods(rendering):
        for key in ("hostNetwork", "hostPID", "hostIPC") if rendering.ours else ():
            if pod.spec.get(key):
                yield f"{pod.title}: has {key}, and so a part of its node"
        for name, volume in pod.volumes.items() if rendering.ours else ():
            if "hostPath" in volume:
                yield f"{pod.title}: the volume {name!r} is a hostPath, a directory of its node"
        for container in pod.all_containers if rendering.ours else [sidecar_of(pod)]:
            for port in container.get("ports", []):
                if "hostPort" in port:
                    yield f"{pod.title}: {container['name']} has the hostPort {port['hostPort']} of its node"


_POD_FIELDS: tuple[tuple[str, Callable[[Mapping[str, Any]], bool]], ...] = (
    ("automountServiceAccountToken: false", lambda spec: spec.get("automountServiceAccountToken") is False),
    ("securityContext.runAsNonRoot: true", lambda spec: spec.get("securityContext", {}).get("runAsNonRoot") is True),
    ("securityContext.fsGroup: 10001", lambda spec: spec.get("securityContext", {}).get("fsGroup") == 10001),
    (
        "securityContext.seccompProfile: RuntimeDefault",
        lambda spec: spec.get("securityContext", {}).get("seccompProfile") == {"type": "RuntimeDefault"},
    ),
)


def pods_are_restricted(rendering: Rendering) -> Lines:
    for pod in pods(rendering):
        if pod.spec.get("enableServiceLinks") is not False:
            yield f"{pod.title}: lacks enableServiceLinks: false; a Service may overwrite variables of the sidecar"
        for what, holds in _POD_FIELDS if rendering.ours else ():
            if not holds(pod.spec):
                yield f"{pod.title}: lacks {what}"
    for document in rendering.of_kind("Namespace"):
        if document["metadata"].get("labels", {}).get("pod-security.kubernetes.io/enforce") != "restricted":
            yield f"{title(document)}: does not enforce the restricted Pod Security Standard"
