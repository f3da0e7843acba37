"""The pod that KServe makes of an InferenceService in Standard mode, and the one of a Deployment."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tools.manifests.rendering import Document, Rendering, title

RUNTIME = "kserve-container"
SIDECAR = "mcp-image-sidecar"
INITIALIZER = "storage-initializer"
_POD_FIELDS = (
    "securityContext",
    "serviceAccountName",
    "automountServiceAccountToken",
    "enableServiceLinks",
    "terminationGracePeriodSeconds",
    "imagePullSecrets",
    "initContainers",
    "hostNetwork",
    "hostPID",
    "hostIPC",
)


@dataclass(frozen=True)
class Pod:
    """A pod as the kubelet gets it. `foreign` names containers that come from outside the rendering."""

    source: Document
    name: str
    labels: dict[str, str]
    spec: dict[str, Any]
    replicas: tuple[int, int]
    strategy: str
    foreign: frozenset[str] = frozenset()

    @property
    def title(self) -> str:
        return title(self.source)

    @property
    def containers(self) -> list[dict[str, Any]]:
        return list(self.spec["containers"])

    @property
    def all_containers(self) -> list[dict[str, Any]]:
        return [*self.spec.get("initContainers", []), *self.containers]

    def container(self, name: str) -> dict[str, Any] | None:
        return next((found for found in self.containers if found["name"] == name), None)

    @property
    def volumes(self) -> dict[str, dict[str, Any]]:
        return {volume["name"]: volume for volume in self.spec.get("volumes", [])}


def pods(rendering: Rendering) -> list[Pod]:
    found = [_of_deployment(document) for document in rendering.of_kind("Deployment")]
    return found + [_of_inference_service(document, rendering) for document in rendering.of_kind("InferenceService")]


def _of_deployment(document: Document) -> Pod:
    spec, template = document["spec"], document["spec"]["template"]
    replicas = spec.get("replicas", 1)
    strategy = spec.get("strategy", {}).get("type", "RollingUpdate")
    return Pod(
        document,
        document["metadata"]["name"],
        template["metadata"]["labels"],
        template["spec"],
        (replicas,) * 2,
        strategy,
    )


def _of_inference_service(document: Document, rendering: Rendering) -> Pod:
    predictor, name = document["spec"]["predictor"], document["metadata"]["name"]
    containers, volumes, foreign = _containers(predictor, rendering)
    both = {**_runtime(predictor, rendering), **predictor}
    spec = copy.deepcopy({key: both[key] for key in _POD_FIELDS if key in both})
    spec |= {"containers": containers, "volumes": volumes}
    _bring_the_model(spec, predictor)
    return Pod(
        document,
        f"{name}-predictor",
        {
            **document["metadata"].get("labels", {}),
            **predictor.get("labels", {}),
            "serving.kserve.io/inferenceservice": name,
            "component": "predictor",
        },
        spec,
        (predictor.get("minReplicas", 1), predictor.get("maxReplicas", 1)),
        predictor.get("deploymentStrategy", {}).get("type", "RollingUpdate"),
        foreign,
    )


def _runtime(predictor: Mapping[str, Any], rendering: Rendering) -> dict[str, Any]:
    """The spec of the ServingRuntime that the predictor names, where it is rendered too."""
    found = rendering.one("ServingRuntime", predictor.get("model", {}).get("runtime", ""))
    return dict(found["spec"]) if found else {}


def _containers(
    predictor: Mapping[str, Any], rendering: Rendering
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], frozenset[str]]:
    """The runtime's containers come before those of the predictor; `model` overrides fields of the first."""
    own = copy.deepcopy(predictor.get("containers", []))
    volumes = copy.deepcopy(predictor.get("volumes", []))
    if "model" not in predictor:
        return own, volumes, frozenset()
    overrides = {
        key: value
        for key, value in predictor["model"].items()
        if key not in ("modelFormat", "runtime", "storageUri", "protocolVersion", "storage")
    }
    runtime = _runtime(predictor, rendering)
    if not runtime:  # one that the cluster has
        first = {"name": RUNTIME, "ports": [{"containerPort": 8080}], **copy.deepcopy(overrides)}
        return [first, *own], volumes, frozenset({RUNTIME})
    base = copy.deepcopy(runtime["containers"])
    base[0] = _merged(base[0], overrides)
    return [*base, *own], [*copy.deepcopy(runtime.get("volumes", [])), *volumes], frozenset()


def _merged(runtime: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Field by field, and what has names by name; arguments come after the runtime's."""
    merged = {**runtime, **overrides}
    for key in runtime.keys() & overrides.keys():
        old, new = runtime[key], overrides[key]
        if isinstance(new, dict):
            merged[key] = _merged(old, new)
        elif key == "args":
            merged[key] = [*old, *new]
        elif key in ("env", "volumeMounts"):
            merged[key] = [*{entry["name"]: entry for entry in (*old, *new)}.values()]
    return merged


def _bring_the_model(spec: dict[str, Any], predictor: Mapping[str, Any]) -> None:
    """KServe mounts a claim at /mnt/models as it is; from elsewhere its own init container brings the model there."""
    first = spec["containers"][0] if spec["containers"] else {}
    given = (entry.get("value", "") for entry in first.get("env", []) if entry["name"] == "STORAGE_URI")
    uri = predictor.get("model", {}).get("storageUri", next(given, None))
    if uri is None:
        return
    mount = {"name": "kserve-provision-location", "mountPath": "/mnt/models", "readOnly": True}
    volume: dict[str, Any] = {"name": mount["name"], "emptyDir": {}}
    if uri.startswith("pvc://"):
        claim, _, path = uri.removeprefix("pvc://").partition("/")
        mount |= {"name": "kserve-pvc-source", "subPath": path}
        volume = {"name": mount["name"], "persistentVolumeClaim": {"claimName": claim, "readOnly": True}}
    else:
        initializer = {"name": INITIALIZER, "resources": {"requests": {"cpu": "100m"}}}
        spec["initContainers"] = [*spec.get("initContainers", []), initializer]
    spec["volumes"] = [*spec["volumes"], volume]
    first["volumeMounts"] = [*first.get("volumeMounts", []), mount]


def environment(container: Mapping[str, Any], rendering: Rendering) -> dict[str, str]:
    """What the container's process finds, as the kubelet makes it; values from Secrets are left out."""
    found: dict[str, str] = {}
    for source in container.get("envFrom", []):
        config = rendering.one("ConfigMap", source.get("configMapRef", {}).get("name", ""))
        found |= config.get("data", {}) if config else {}
    given: dict[str, str] = {}
    for entry in container.get("env", []):
        given[entry["name"]] = _expanded(_value(entry, rendering), given)
    return found | given


def _value(entry: Mapping[str, Any], rendering: Rendering) -> str:
    path = entry.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath")
    if path == "metadata.namespace":
        return str(rendering.documents[-1]["metadata"].get("namespace", "default"))
    return str(entry.get("value", ""))


def _expanded(text: str, given: Mapping[str, str]) -> str:
    """`$(NAME)` of what stands before it; an unknown one stays as it is."""
    return re.sub(r"\$\((\w+)\)", lambda match: given.get(match[1], match[0]), text)


def helpers(container: Mapping[str, Any]) -> set[str]:
    """Variables that are there only for others to be made of."""
    values = (str(entry.get("value", "")) for entry in container.get("env", []))
    return {name for value in values for name in re.findall(r"\$\((\w+)\)", value)}


def ports(container: Mapping[str, Any]) -> Iterator[tuple[str | None, int]]:
    return ((port.get("name"), port["containerPort"]) for port in container.get("ports", []))
