"""Which containers a pod has, how it is probed and how it ends."""

from __future__ import annotations

from tools.manifests.configured import configured, sidecar_of
from tools.manifests.pods import RUNTIME, SIDECAR, pods
from tools.manifests.quantities import quantity
from tools.manifests.rendering import Lines, Rendering, title

_LOADING_SECONDS = 600
_PROBED_PORT = "metrics"  # it has connections of its own
_MEASURED_BYTES = 280_000_000  # docs/deploy.md: the largest peak with a bucket and traces


def containers_are_in_order(rendering: Rendering) -> Lines:
    for pod in pods(rendering):
        names = [container["name"] for container in pod.containers]
        wanted = [SIDECAR] if pod.source["kind"] == "Deployment" else [RUNTIME, SIDECAR]
        if names[: len(wanted)] != wanted or names.count(SIDECAR) != 1:
            yield f"{pod.title}: containers are {names}, not {wanted}; KServe overwrites what comes before {RUNTIME}"


def the_mode_is_standard(rendering: Rendering) -> Lines:
    for document in rendering.of_kind("InferenceService"):
        mode = document["metadata"].get("annotations", {}).get("serving.kserve.io/deploymentMode")
        if mode not in ("Standard", "RawDeployment"):  # the second is what KServe before 0.16 calls it
            yield f"{title(document)}: deploymentMode is {mode}; Knative allows one port and ends pods that have jobs"


def every_container_asks_for_cpu(rendering: Rendering) -> Lines:
    for pod in pods(rendering):
        for container in pod.all_containers:
            asked = container.get("resources", {}).get("requests", {}).get("cpu")
            if not asked and container["name"] not in pod.foreign:
                yield f"{pod.title}: {container['name']} requests no cpu; an autoscaler on CPU stands still without"


def the_sidecar_has_the_memory_it_needs(rendering: Rendering) -> Lines:
    for pod in pods(rendering):
        limit = sidecar_of(pod).get("resources", {}).get("limits", {}).get("memory")
        if limit is None or quantity(limit) < _MEASURED_BYTES:
            yield f"{pod.title}: the sidecar's memory limit is {limit}; it has taken {_MEASURED_BYTES:,} bytes"


def probes_ask_the_right_routes(rendering: Rendering) -> Lines:
    wanted = {"startupProbe": "/startupz", "livenessProbe": "/livez", "readinessProbe": "/readyz"}
    for pod in pods(rendering):
        for kind, path in wanted.items():
            asked = sidecar_of(pod).get(kind, {}).get("httpGet", {})
            if asked.get("path") != path:
                yield f"{pod.title}: the sidecar's {kind} asks {asked.get('path')}, not {path}"
            if asked.get("port") != _PROBED_PORT:
                yield f"{pod.title}: the sidecar's {kind} asks port {asked.get('port')!r}, which clients may fill"
        startup = sidecar_of(pod).get("startupProbe", {})
        patience = startup.get("failureThreshold", 3) * startup.get("periodSeconds", 10)
        if patience < _LOADING_SECONDS:
            yield f"{pod.title}: the sidecar's startupProbe gives up after {patience} s; loading a model takes minutes"
        runtime = pod.container(RUNTIME) or {}
        if "livenessProbe" in runtime or "httpGet" in runtime.get("readinessProbe", {}):
            yield f"{pod.title}: {RUNTIME} is probed by HTTP, which a predict blocks"


def nothing_is_cut_off_when_a_pod_ends(rendering: Rendering) -> Lines:
    for pod, settings in configured(rendering):
        grace = pod.spec.get("terminationGracePeriodSeconds", 30)
        if grace <= settings.listen.shutdown_grace:
            yield (
                f"{pod.title}: terminationGracePeriodSeconds is {grace}, which is not longer than the sidecar's grace, "
                f"{settings.listen.shutdown_grace:.0f}"
            )
        runtime = pod.container(RUNTIME)
        hook = (runtime or {}).get("lifecycle", {}).get("preStop", {}).get("httpGet")
        if runtime is not None and hook != {"path": "/drained", "port": settings.listen.metrics_port}:
            yield f"{pod.title}: {RUNTIME}'s preStop is {hook}, not a GET of /drained on {settings.listen.metrics_port}"
        if "preStop" in sidecar_of(pod).get("lifecycle", {}):
            yield f"{pod.title}: the sidecar has a preStop, so that it takes calls while its runtime ends already"
        timeout = pod.source["spec"].get("predictor", {}).get("timeout", 60)
        if runtime is not None and timeout <= settings.models[0].timeout:
            yield f"{pod.title}: timeout is {timeout}, which is not longer than RUNTIME_TIMEOUT"
