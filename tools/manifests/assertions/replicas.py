"""How many pods there are, what they share and how one follows another."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from tools.generate_docs import exposed_metrics
from tools.manifests.assertions.volumes import volume_at
from tools.manifests.configured import sidecar_of
from tools.manifests.pods import RUNTIME, Pod, environment, pods
from tools.manifests.rendering import Lines, Rendering, title


def several_pods_share_their_store(rendering: Rendering) -> Lines:
    for pod in pods(rendering):
        given = environment(sidecar_of(pod), rendering)
        volume = volume_at(pod, PurePosixPath(given.get("STORAGE_PATH", "/")))
        shared = given.get("STORAGE_BACKEND") == "s3" or "persistentVolumeClaim" in pod.volumes.get(volume or "", {})
        if pod.replicas[1] > 1 and not shared:
            yield f"{pod.title}: up to {pod.replicas[1]} replicas on an emptyDir: an image would live in one pod only"
        if rendering.ours and pod.replicas[1] == 1 and pod.strategy != "Recreate":
            yield f"{pod.title}: one replica needs the strategy Recreate, or its successor waits for the GPU for ever"
    for document in rendering.of_kind("PersistentVolumeClaim"):
        if document["spec"]["accessModes"] != ["ReadWriteMany"]:
            yield f"{title(document)}: is {document['spec']['accessModes']}, which a second pod cannot mount"


def a_node_can_be_drained(rendering: Rendering) -> Lines:
    for document in rendering.of_kind("PodDisruptionBudget"):
        for pod in pods(rendering):
            fewest = pod.replicas[0]
            if fewest < 2:
                yield f"{title(document)}: {fewest} replica of {pod.title} would block every drain of its node"
            elif not _may_go(document["spec"], fewest):
                yield f"{title(document)}: lets none of the {fewest} pods of {pod.title} go, and no node be drained"


def _may_go(budget: Mapping[str, Any], replicas: int) -> bool:
    """Whether one of so many pods may be evicted."""
    if "maxUnavailable" in budget:
        return _share(budget["maxUnavailable"], replicas) > 0
    return _share(budget.get("minAvailable", 0), replicas) < replicas


def _share(given: int | str, replicas: int) -> int:
    """A number, or a percentage, rounded up as Kubernetes does for both."""
    return given if isinstance(given, int) else math.ceil(int(given.removesuffix("%")) * replicas / 100)


def the_autoscaler_is_the_right_one(rendering: Rendering) -> Lines:
    for pod in pods(rendering):
        if pod.source["kind"] != "InferenceService":
            continue
        chosen = pod.source["metadata"].get("annotations", {}).get("serving.kserve.io/autoscalerClass")
        scaled = list(rendering.of_kind("ScaledObject"))
        if _replicas_are_ours(rendering) and chosen != ("external" if scaled else "none"):
            yield f"{pod.title}: autoscalerClass is {chosen} with {len(scaled)} ScaledObjects"
        for document in scaled:
            yield from (f"{title(document)}: {problem}" for problem in _scaling_problems(document, pod))


def _scaling_problems(document: Mapping[str, Any], pod: Pod) -> Lines:
    spec, namespace = document["spec"], document["metadata"]["namespace"]
    if spec["scaleTargetRef"]["name"] != pod.name:
        yield f"scales {spec['scaleTargetRef']['name']}, KServe calls the Deployment {pod.name}"
    if (spec.get("minReplicaCount", 0), spec.get("maxReplicaCount", 100)) != pod.replicas:
        yield f"has other bounds than {pod.title}, {pod.replicas}"
    for trigger in spec["triggers"]:
        if f'namespace="{namespace}"' not in trigger["metadata"]["query"]:
            yield f"counts generations of other namespaces than {namespace}"
        asked = {*re.findall(r"\bimagegen_\w+", trigger["metadata"]["query"])}
        if not asked or not asked <= {*exposed_metrics()}:
            yield f"asks for {sorted(asked)}, which the sidecar does not measure"


def a_rollout_needs_no_spare_gpu(rendering: Rendering) -> Lines:
    for pod in pods(rendering):
        strategy = pod.source["spec"].get("predictor", {}).get("deploymentStrategy", {})
        rolling, wanted = strategy.get("rollingUpdate"), {"maxSurge": 0, "maxUnavailable": 1}
        rolls = pod.container(RUNTIME) is not None and pod.strategy == "RollingUpdate"
        if rolls and _replicas_are_ours(rendering) and rolling != wanted:
            yield f"{pod.title}: rollingUpdate is {rolling}, not {wanted}: a surge wants a GPU more"


def _replicas_are_ours(rendering: Rendering) -> bool:
    """How many pods there are is said by us, and not by the owner of the InferenceService."""
    return rendering.ours or any(rendering.of_kind("ScaledObject"))
