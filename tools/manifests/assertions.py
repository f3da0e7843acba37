"""What must be true of a pod and of the objects around it. Each assertion yields a line for everything that is not."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import PurePath, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from sidecar.config import VARIABLES, Settings, read_settings
from sidecar.errors import BadConfiguration
from tools.generate_docs import exposed_metrics
from tools.manifests.foreign_variables import FOREIGN_VARIABLES
from tools.manifests.pods import RUNTIME, SIDECAR, Pod, environment, helpers, pods, ports
from tools.manifests.quantities import quantity
from tools.manifests.rendering import Rendering, title

FORBIDDEN_LABELS = ("serving.kserve.io/inferenceservice", "component")
KNOWN = frozenset(
    name for variable in VARIABLES for name in (variable.name, *([f"{variable.name}_FILE"] if variable.secret else []))
)

Lines = Iterator[str]


def _sidecar(pod: Pod) -> dict[str, Any]:
    return pod.container(SIDECAR) or {}


def _settings(pod: Pod, rendering: Rendering) -> Settings:
    """Raises BadConfiguration."""
    given = {name: value for name, value in environment(_sidecar(pod), rendering).items() if name in KNOWN}
    return read_settings(given)


def containers_are_in_order(rendering: Rendering) -> Lines:
    for pod in pods(rendering):
        names = [container["name"] for container in pod.containers]
        wanted = [SIDECAR] if pod.source["kind"] == "Deployment" else [RUNTIME, SIDECAR]
        if names[: len(wanted)] != wanted or names.count(SIDECAR) != 1:
            yield f"{pod.title}: containers are {names}, not {wanted}; KServe overwrites what comes before {RUNTIME}"


def the_mode_is_standard(rendering: Rendering) -> Lines:
    for document in rendering.of_kind("InferenceService"):
        mode = document["metadata"].get("annotations", {}).get("serving.kserve.io/deploymentMode")
        if mode != "Standard":
            yield f"{title(document)}: deploymentMode is {mode}; Knative allows one port and ends pods that have jobs"


def variables_are_known(rendering: Rendering) -> Lines:
    for pod in pods(rendering):
        container = _sidecar(pod)
        for name in environment(container, rendering):
            if name not in KNOWN | FOREIGN_VARIABLES | helpers(container):
                yield f"{pod.title}: {name} is no variable of the sidecar"


def no_aws_variable_comes_by_envfrom(rendering: Rendering) -> Lines:
    for pod in pods(rendering):
        container = _sidecar(pod)
        listed = {entry["name"] for entry in container.get("env", [])}
        for name in environment(container, rendering):
            if name.startswith("AWS_") and name not in listed:
                yield f"{pod.title}: {name} comes by envFrom; IRSA's webhook puts its own into env, which wins"


def the_environment_is_accepted(rendering: Rendering) -> Lines:
    for pod in pods(rendering):
        try:
            _settings(pod, rendering)
        except BadConfiguration as error:
            yield from (f"{pod.title}: the sidecar refuses {problem}" for problem in error.problems)


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
    for source in _sidecar(pod).get("envFrom", []):
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


def ports_lead_somewhere(rendering: Rendering) -> Lines:
    for pod in pods(rendering):
        open_ports = {port for container in pod.containers for pair in ports(container) for port in pair}
        for document in rendering.of_kind("Service"):
            for port in document["spec"]["ports"]:
                if port.get("targetPort", port["port"]) not in open_ports:
                    yield f"{title(document)}: port {port['port']} leads to {port.get('targetPort')}, which nothing has"
        for document in rendering.of_kind("PodMonitor"):
            for endpoint in document["spec"]["podMetricsEndpoints"]:
                if endpoint["port"] not in open_ports:
                    yield f"{title(document)}: scrapes port {endpoint['port']!r}, which no container has"
        yield from _probes_lead_somewhere(pod)


def endpoints_are_told_apart(rendering: Rendering) -> Lines:
    """The operator's labels of a target know the port and not the path."""
    for document in rendering.of_kind("PodMonitor"):
        seen: list[dict[str, str]] = []
        for endpoint in document["spec"]["podMetricsEndpoints"]:
            labels = {"container": SIDECAR, "endpoint": endpoint["port"], **_given_labels(endpoint)}
            if labels in seen:
                yield f"{title(document)}: two endpoints are {labels}, so that their series overwrite each other"
            seen.append(labels)


def _given_labels(endpoint: Mapping[str, Any]) -> dict[str, str]:
    steps = [step for step in endpoint.get("relabelings", []) if "sourceLabels" not in step]
    return {step["targetLabel"]: step["replacement"] for step in steps if "targetLabel" in step}


def _probes_lead_somewhere(pod: Pod) -> Lines:
    for container in pod.containers:
        own = {port for pair in ports(container) for port in pair}
        for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
            probe = container.get(kind, {})
            port = probe.get("httpGet", probe.get("tcpSocket", {})).get("port")
            if probe and port not in own:
                yield f"{pod.title}: {container['name']}'s {kind} asks port {port!r}, which it has not"


def the_sidecar_listens_where_its_ports_say(rendering: Rendering) -> Lines:
    for pod, settings in _configured(rendering):
        listens = {"mcp": settings.listen.port, "metrics": settings.listen.metrics_port}
        declared = dict(ports(_sidecar(pod)))
        if declared != listens:
            yield f"{pod.title}: the sidecar listens on {listens}, its ports are {declared}"
        if settings.listen.host != "0.0.0.0":
            yield f"{pod.title}: LISTEN_HOST is {settings.listen.host}; the Service does not reach that"


def _configured(rendering: Rendering) -> Iterator[tuple[Pod, Settings]]:
    """Pods whose environment the sidecar accepts; the others have a line of their own."""
    for pod in pods(rendering):
        try:
            yield pod, _settings(pod, rendering)
        except BadConfiguration:
            continue


def the_endpoint_is_the_runtime_beside_it(rendering: Rendering) -> Lines:
    for pod, settings in _configured(rendering):
        runtime = pod.container(RUNTIME)
        url = urlsplit(settings.models[0].endpoint)
        if runtime is not None and (url.hostname, url.port) != ("localhost", next(ports(runtime), (None, 8080))[1]):
            yield f"{pod.title}: KSERVE_ENDPOINT is {url.geturl()}, which is not the port of {RUNTIME}"
        arguments = (runtime or {}).get("args", [])
        name = next((text.partition("=")[2] for text in arguments if text.startswith("--model_name=")), None)
        if name == "{{.Name}}" or (name is None and runtime is not None):
            name = pod.source["metadata"]["name"]  # what KServe calls it
        if runtime is not None and settings.models[0].name != name:
            yield f"{pod.title}: KSERVE_ENDPOINT asks for {settings.models[0].name!r}, the runtime serves {name!r}"


def only_the_sidecars_ports_are_open(rendering: Rendering) -> Lines:
    wanted = [{"protocol": "TCP", "port": port} for port in (8000, 9090)]
    for document in rendering.of_kind("NetworkPolicy"):
        rules = document["spec"].get("ingress", [])
        admitted = [port for rule in rules for port in rule.get("ports") or ["every port"]]
        strangers = [port for port in admitted if port not in wanted]
        missing = [port for port in wanted if port not in admitted]
        if strangers or missing or "Ingress" not in document["spec"]["policyTypes"]:
            yield f"{title(document)}: admits {admitted}, not 8000 and 9090 by TCP alone; 8080 takes predicts"
        if not all(rule.get("from") for rule in rules):
            yield f"{title(document)}: a rule admits everybody"
        for peer in (peer for rule in rules for peer in rule.get("from") or []):
            yield from (f"{title(document)}: a rule admits {whom}" for whom in _too_many(peer))


def _too_many(peer: Mapping[str, Any]) -> Iterator[str]:
    if "namespaceSelector" in peer and not any(peer["namespaceSelector"].values()):
        yield "every namespace"
    if peer.get("ipBlock", {}).get("cidr", "").endswith("/0"):
        yield f"every address, {peer['ipBlock']['cidr']}"


def prod_is_guarded_and_scraped(rendering: Rendering) -> Lines:
    for kind in ("NetworkPolicy", "PodMonitor") if rendering.name == "prod" else ():
        if not any(rendering.of_kind(kind)):
            yield f"{rendering.name}: has no {kind}"


def the_scraper_may_scrape(rendering: Rendering) -> Lines:
    """The Prometheus that KEDA asks is the one that the network policy lets in."""
    admitted = {
        peer.get("namespaceSelector", {}).get("matchLabels", {}).get("kubernetes.io/metadata.name")
        for document in rendering.of_kind("NetworkPolicy")
        for rule in document["spec"].get("ingress", [])
        for peer in rule.get("from", [])
    }
    for document in rendering.of_kind("ScaledObject"):
        for trigger in document["spec"]["triggers"]:
            host = urlsplit(trigger["metadata"]["serverAddress"]).hostname or ""
            namespace = host.split(".")[1] if "." in host else host
            if admitted and namespace not in admitted:
                yield f"{title(document)}: asks a Prometheus in {namespace!r}, which the NetworkPolicy does not admit"


def every_container_asks_for_cpu(rendering: Rendering) -> Lines:
    for pod in pods(rendering):
        for container in pod.all_containers:
            asked = container.get("resources", {}).get("requests", {}).get("cpu")
            if not asked and container["name"] not in pod.foreign:
                yield f"{pod.title}: {container['name']} requests no cpu; an autoscaler on CPU stands still without"


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
    """In a namespace of ours all of them; in another's pod the one that we add."""
    for pod in pods(rendering):
        for container in pod.all_containers if rendering.ours else [_sidecar(pod)]:
            context = container.get("securityContext", {})
            for what, holds in _RESTRICTED:
                if not holds(context):
                    yield f"{pod.title}: {container.get('name')} lacks securityContext {what}"


_POD_FIELDS: tuple[tuple[str, Callable[[Mapping[str, Any]], bool]], ...] = (
    ("automountServiceAccountToken: false", lambda spec: spec.get("automountServiceAccountToken") is False),
    ("securityContext.runAsNonRoot: true", lambda spec: spec.get("securityContext", {}).get("runAsNonRoot") is True),
    ("securityContext.fsGroup: 10001", lambda spec: spec.get("securityContext", {}).get("fsGroup") == 10001),
    (
        "securityContext.seccompProfile: RuntimeDefault",
        lambda spec: spec.get("securityContext", {}).get("seccompProfile") == {"type": "RuntimeDefault"},
    ),
)


def nothing_of_the_node_is_shared(rendering: Rendering) -> Lines:
    """In another's pod that is for its owner to say, but for the sidecar's own ports."""
    for pod in pods(rendering):
        for key in ("hostNetwork", "hostPID", "hostIPC") if rendering.ours else ():
            if pod.spec.get(key):
                yield f"{pod.title}: has {key}, and so a part of its node"
        for name, volume in pod.volumes.items() if rendering.ours else ():
            if "hostPath" in volume:
                yield f"{pod.title}: the volume {name!r} is a hostPath, a directory of its node"
        for container in pod.all_containers if rendering.ours else [_sidecar(pod)]:
            for port in container.get("ports", []):
                if "hostPort" in port:
                    yield f"{pod.title}: {container['name']} has the hostPort {port['hostPort']} of its node"


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


def the_store_has_room(rendering: Rendering) -> Lines:
    for pod, settings in _configured(rendering):
        name, path = _bounded_path(settings)
        found = _volume_at(pod, path)
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


def _volume_at(pod: Pod, path: PurePath) -> str | None:
    """The name of the volume on which the sidecar finds a path."""
    mounts = {mount["mountPath"]: mount["name"] for mount in _sidecar(pod).get("volumeMounts", [])}
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
        store = _volume_at(pod, PurePosixPath(environment(_sidecar(pod), rendering).get("STORAGE_PATH", "/")))
        claimed = "persistentVolumeClaim" in pod.volumes.get(store or "", {})
        if claimed and "fsGroup" not in pod.spec.get("securityContext", {}):
            yield f"{pod.title}: has no fsGroup, and the volume {store!r} is root's"


def volumes_are_defined_once(rendering: Rendering) -> Lines:
    for pod in pods(rendering):
        names = [volume["name"] for volume in pod.spec.get("volumes", [])]
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield f"{pod.title}: the volume {name!r} is defined {names.count(name)} times"


def other_paths_are_writable(rendering: Rendering) -> Lines:
    for pod in pods(rendering):
        mounts = [PurePosixPath(mount["mountPath"]) for mount in _sidecar(pod).get("volumeMounts", [])]
        spool = environment(_sidecar(pod), rendering).get("SPOOL_PATH")
        for path in filter(None, ("/tmp", spool)):
            if not any(PurePosixPath(path).is_relative_to(mount) for mount in mounts):
                yield f"{pod.title}: {path} is on no volume, and the root is read-only"


def several_pods_share_their_store(rendering: Rendering) -> Lines:
    for pod in pods(rendering):
        given = environment(_sidecar(pod), rendering)
        volume = _volume_at(pod, PurePosixPath(given.get("STORAGE_PATH", "/")))
        shared = given.get("STORAGE_BACKEND") == "s3" or "persistentVolumeClaim" in pod.volumes.get(volume or "", {})
        if pod.replicas[1] > 1 and not shared:
            yield f"{pod.title}: up to {pod.replicas[1]} replicas on an emptyDir: an image would live in one pod only"
        if rendering.ours and pod.replicas[1] == 1 and pod.strategy != "Recreate":
            yield f"{pod.title}: one replica needs the strategy Recreate, or its successor waits for the GPU for ever"
        for document in rendering.of_kind("PodDisruptionBudget"):
            if pod.replicas[0] < 2:
                yield f"{title(document)}: {pod.replicas[0]} replica of {pod.title} would block every drain of its node"
    for document in rendering.of_kind("PersistentVolumeClaim"):
        if document["spec"]["accessModes"] != ["ReadWriteMany"]:
            yield f"{title(document)}: is {document['spec']['accessModes']}, which a second pod cannot mount"


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


def _replicas_are_ours(rendering: Rendering) -> bool:
    """How many pods there are is said by us, and not by the owner of the InferenceService."""
    return rendering.ours or any(rendering.of_kind("ScaledObject"))


def a_rollout_needs_no_spare_gpu(rendering: Rendering) -> Lines:
    for pod in pods(rendering):
        strategy = pod.source["spec"].get("predictor", {}).get("deploymentStrategy", {})
        rolling, wanted = strategy.get("rollingUpdate"), {"maxSurge": 0, "maxUnavailable": 1}
        rolls = pod.container(RUNTIME) is not None and pod.strategy == "RollingUpdate"
        if rolls and _replicas_are_ours(rendering) and rolling != wanted:
            yield f"{pod.title}: rollingUpdate is {rolling}, not {wanted}: a surge wants a GPU more"


def _scaling_problems(document: Mapping[str, Any], pod: Pod) -> Lines:
    spec, namespace = document["spec"], document["metadata"]["namespace"]
    if spec["scaleTargetRef"]["name"] != pod.name:
        yield f"scales {spec['scaleTargetRef']['name']}, KServe calls the Deployment {pod.name}"
    if (spec["minReplicaCount"], spec["maxReplicaCount"]) != pod.replicas:
        yield f"has other bounds than {pod.title}, {pod.replicas}"
    for trigger in spec["triggers"]:
        if f'namespace="{namespace}"' not in trigger["metadata"]["query"]:
            yield f"counts generations of other namespaces than {namespace}"
        asked = {*re.findall(r"\bimagegen_\w+", trigger["metadata"]["query"])}
        if not asked or not asked <= {*exposed_metrics()}:
            yield f"asks for {sorted(asked)}, which the sidecar does not measure"


def nothing_is_cut_off_when_a_pod_ends(rendering: Rendering) -> Lines:
    for pod, settings in _configured(rendering):
        grace = pod.spec.get("terminationGracePeriodSeconds", 30)
        if grace <= settings.listen.shutdown_grace:
            yield (
                f"{pod.title}: terminationGracePeriodSeconds is {grace}, which is not longer than the sidecar's grace, "
                f"{settings.listen.shutdown_grace:.0f}"
            )
        runtime = pod.container(RUNTIME)
        hook = (runtime or {}).get("lifecycle", {}).get("preStop", {}).get("httpGet")
        if runtime is not None and hook != {"path": "/drained", "port": settings.listen.port}:
            yield f"{pod.title}: {RUNTIME}'s preStop is {hook}, not a GET of /drained on {settings.listen.port}"
        timeout = pod.source["spec"].get("predictor", {}).get("timeout", 60)
        if runtime is not None and timeout <= settings.models[0].timeout:
            yield f"{pod.title}: timeout is {timeout}, which is not longer than RUNTIME_TIMEOUT"


def probes_ask_the_right_routes(rendering: Rendering) -> Lines:
    wanted = {"startupProbe": "/startupz", "livenessProbe": "/livez", "readinessProbe": "/readyz"}
    for pod in pods(rendering):
        for kind, path in wanted.items():
            asked = _sidecar(pod).get(kind, {}).get("httpGet", {}).get("path")
            if asked != path:
                yield f"{pod.title}: the sidecar's {kind} asks {asked}, not {path}"
        runtime = pod.container(RUNTIME) or {}
        if "livenessProbe" in runtime or "httpGet" in runtime.get("readinessProbe", {}):
            yield f"{pod.title}: {RUNTIME} is probed by HTTP, which a predict blocks"


def hosts_of_the_service_are_answered(rendering: Rendering) -> Lines:
    for pod, settings in _configured(rendering):
        for document in rendering.of_kind("Service"):
            name, namespace = document["metadata"]["name"], document["metadata"]["namespace"]
            for host in (
                name,
                f"{name}.{namespace}",
                *(f"{name}.{namespace}.{end}" for end in ("svc", "svc.cluster.local")),
            ):
                if host not in settings.listen.allowed_hosts:
                    yield f"{pod.title}: ALLOWED_HOSTS lacks {host}, a name of {title(document)}"


ASSERTIONS: tuple[Callable[[Rendering], Iterable[str]], ...] = (
    containers_are_in_order,
    the_mode_is_standard,
    variables_are_known,
    no_aws_variable_comes_by_envfrom,
    the_environment_is_accepted,
    references_are_resolved,
    the_optional_secret_is_the_documented_one,
    selectors_match_the_pod,
    no_object_has_a_label_of_kserve,
    ports_lead_somewhere,
    endpoints_are_told_apart,
    the_sidecar_listens_where_its_ports_say,
    the_endpoint_is_the_runtime_beside_it,
    only_the_sidecars_ports_are_open,
    the_scraper_may_scrape,
    prod_is_guarded_and_scraped,
    every_container_asks_for_cpu,
    containers_are_restricted,
    nothing_of_the_node_is_shared,
    pods_are_restricted,
    the_store_has_room,
    a_claim_is_written_by_its_group,
    volumes_are_defined_once,
    other_paths_are_writable,
    several_pods_share_their_store,
    the_autoscaler_is_the_right_one,
    a_rollout_needs_no_spare_gpu,
    nothing_is_cut_off_when_a_pod_ends,
    probes_ask_the_right_routes,
    hosts_of_the_service_are_answered,
)


def broken(rendering: Rendering) -> list[str]:
    """A line for everything that is not as it must be; an assertion that cannot even look says so itself."""
    return [line for assertion in ASSERTIONS for line in assertion(rendering)]
