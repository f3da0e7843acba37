"""Objects that name other objects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tools.manifests.configured import sidecar_of
from tools.manifests.pods import Pod, pods
from tools.manifests.rendering import Lines, Rendering, title

FORBIDDEN_LABELS = ("serving.kserve.io/inferenceservice", "component")


def references_are_resolved(rendering: Rendering) -> Lines:
    for pod in pods(rendering):
        for kind, name, optional in _references(pod):
            own = kind == "PersistentVolumeClaim" and name in rendering.own_claims
            if not optional and not own and rendering.one(kind, name) is None:
                yield f"{pod.title}: {kind} {name!r} is not among the rendered objects"
        for container in pod.all_containers:
            for mount in container.get("volumeMounts", []):
                if mount["name"] not in pod.volumes:
                    yield f"{pod.title}: {container['name']} mounts {mount['name']!r}, which is no volume of the pod"


def _references(pod: Pod) -> Iterator[tuple[str, str, bool]]:
    """Kind, name and whether the pod does without. Containers of others refer to what others have."""
    if "serviceAccountName" in pod.spec:
        yield "ServiceAccount", pod.spec["serviceAccountName"], False
    for volume in pod.volumes.values():
        if claim := volume.get("persistentVolumeClaim"):
            yield "PersistentVolumeClaim", claim["claimName"], False
        if config := volume.get("configMap"):
            yield "ConfigMap", config["name"], config.get("optional", False)
        if secret := volume.get("secret"):
            yield "Secret", secret["secretName"], secret.get("optional", False)
    for source in sidecar_of(pod).get("envFrom", []):
        for key, kind in (("configMapRef", "ConfigMap"), ("secretRef", "Secret")):
            if key in source:
                yield kind, source[key]["name"], source[key].get("optional", False)


def the_optional_secret_is_the_documented_one(rendering: Rendering) -> Lines:
    for pod in pods(rendering):
        for kind, name, optional in _references(pod):
            if optional and (kind, name) != ("Secret", "image-generation-mcp"):
                yield f"{pod.title}: optional {kind} {name!r} is not the Secret of manifests/secret.example.yaml"


def selectors_match_the_pod(rendering: Rendering) -> Lines:
    for document in rendering.of_kind("Service", "PodDisruptionBudget", "PodMonitor", "NetworkPolicy", "Deployment"):
        selector = _selector(document)
        if not any(selector and selector.items() <= pod.labels.items() for pod in pods(rendering)):
            yield f"{title(document)}: selects {selector}, which no pod has"


def _selector(document: Mapping[str, Any]) -> dict[str, str]:
    spec = document["spec"]
    if document["kind"] == "Service":
        return dict(spec.get("selector", {}))
    return dict(spec.get("podSelector", spec.get("selector", {})).get("matchLabels", {}))


def no_object_has_a_label_of_kserve(rendering: Rendering) -> Lines:
    for document in rendering.documents:
        for label in sorted({*document["metadata"].get("labels", {})} & {*FORBIDDEN_LABELS}):
            yield f"{title(document)}: carries the label {label}; KServe deletes objects that do"
