"""What `make manifests` checks, and that each of its assertions can fail."""

from __future__ import annotations

import copy
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.real_parts import require
from tools.manifests.__main__ import main, with_combinations
from tools.manifests.assertions import ASSERTIONS, broken
from tools.manifests.configured import KNOWN
from tools.manifests.foreign_variables import FOREIGN_VARIABLES
from tools.manifests.one_place import different_sidecars, names_elsewhere
from tools.manifests.pods import pods
from tools.manifests.quantities import quantity
from tools.manifests.rendering import ROOT, NotRendered, Rendering, folders, kubectl, rendered
from tools.manifests.schemas import checker_of_custom_kinds, invalid

pytestmark = pytest.mark.real

Edit = Callable[[Any], None]


@pytest.fixture(scope="module")
def renderings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Rendering]:
    require(kubectl() is not None, "kubectl is not here: `make manifests` sets it up")
    return {
        folder.name: rendered(folder) for folder in folders(with_combinations(ROOT, tmp_path_factory.mktemp("tree")))
    }


def test_every_overlay_example_and_combination_is_as_it_must_be(renderings: dict[str, Rendering]) -> None:
    assert {name: broken(rendering) for name, rendering in renderings.items() if broken(rendering)} == {}
    assert {*renderings} >= {"local", "pvc", "s3", "prod", "standalone", "attach-model", "attach-containers"}


@pytest.mark.parametrize("form", ["model", "containers"])
@pytest.mark.parametrize(
    ("store", "beside"),
    [
        ("emptydir", {"PodMonitor", "NetworkPolicy"}),
        ("pvc-rwx", {"PodMonitor", "NetworkPolicy", "ScaledObject", "PodDisruptionBudget", "PersistentVolumeClaim"}),
        ("s3", {"PodMonitor", "NetworkPolicy", "ScaledObject", "PodDisruptionBudget"}),
    ],
)
def test_everything_composes_with_an_inference_service_of_others(
    renderings: dict[str, Rendering], form: str, store: str, beside: set[str]
) -> None:
    rendering = renderings[f"attach-{form}-{store}"]
    always = {"InferenceService", "Service", "ConfigMap", "PrometheusRule"}
    assert {document["kind"] for document in rendering.documents} == always | beside
    assert _of(rendering, "InferenceService")["metadata"]["name"] == "water-colours"
    own = [document for document in rendering.documents if not document["metadata"]["name"].endswith("-dashboard")]
    assert not re.search(r"\bimage-generation\b(?!-mcp)|stable-diffusion", yaml.safe_dump_all(own))


def test_every_object_fits_its_schema(renderings: dict[str, Rendering]) -> None:
    assert [line for rendering in renderings.values() for line in invalid(rendering)] == []


def test_custom_kinds_are_held_against_their_schemas(renderings: dict[str, Rendering]) -> None:
    if checker_of_custom_kinds() is None:
        pytest.skip("CUSTOM_KINDS_CHECKER names no checker of custom kinds")
    rendering = copy.deepcopy(renderings["local"])
    _of(rendering, "InferenceService")["spec"]["predictor"]["minReplica"] = 1
    (line,) = invalid(rendering)
    assert "InferenceService/image-generation: spec.predictor" in line
    assert "minReplica" in line


def test_an_unknown_field_of_a_core_kind_is_an_error(renderings: dict[str, Rendering]) -> None:
    rendering = copy.deepcopy(renderings["local"])
    _of(rendering, "Service")["spec"]["selectors"] = {}
    (line,) = invalid(rendering)
    assert "Service/image-generation-mcp" in line
    assert "selectors" in line


def test_the_example_secret_fits_its_schema_and_has_only_variables_that_mean_something() -> None:
    secret = yaml.safe_load((ROOT / "manifests" / "secret.example.yaml").read_text())
    assert list(invalid(Rendering("example", [secret]))) == []
    assert [name for name in secret["stringData"] if name not in KNOWN | FOREIGN_VARIABLES] == []


def test_the_example_of_a_model_claim_makes_what_the_overlays_take_as_given(renderings: dict[str, Rendering]) -> None:
    claim, pod = yaml.safe_load_all((ROOT / "manifests" / "model-claim.example.yaml").read_text())
    assert list(invalid(Rendering("example", [claim, pod]))) == []
    for name, rendering in renderings.items():
        assert rendering.own_claims <= {claim["metadata"]["name"]}, name
    assert pod["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]


def _of(rendering: Rendering, kind: str) -> Any:
    return next(rendering.of_kind(kind))


def _at(path: str, value: Any) -> Edit:
    """Set what stands at `Kind.key.0.key…`; ... as the value removes it."""

    def edit(rendering: Rendering) -> None:
        kind, *keys = path.split(".")
        place: Any = _of(rendering, kind)
        for key in keys[:-1]:
            place = place[int(key)] if isinstance(place, list) else place.setdefault(key.replace("~", "."), {})
        last: Any = int(keys[-1]) if isinstance(place, list) else keys[-1].replace("~", ".")
        if value is ...:
            del place[last]
        else:
            place[last] = value

    return edit


def _without(kind: str) -> Edit:
    def edit(rendering: Rendering) -> None:
        rendering.documents.remove(_of(rendering, kind))

    return edit


def _region_by_configmap(rendering: Rendering) -> None:
    del _of(rendering, "InferenceService")["spec"]["predictor"]["containers"][1]["env"][3]
    _of(rendering, "ConfigMap")["data"]["AWS_REGION"] = "eu-central-1"


def _sidecar_first(rendering: Rendering) -> None:
    _of(rendering, "InferenceService")["spec"]["predictor"]["containers"].reverse()


POD = "InferenceService.spec.predictor"
SIDECAR = f"{POD}.containers.1"
MUTATIONS: list[tuple[str, str, Edit, str]] = [
    ("containers_are_in_order", "local", _sidecar_first, "containers are ['mcp-image-sidecar', 'kserve-container']"),
    ("containers_are_in_order", "local", _at(f"{POD}.containers.1", ...), "containers are ['kserve-container']"),
    (
        "the_mode_is_standard",
        "local",
        _at("InferenceService.metadata.annotations.serving~kserve~io/deploymentMode", "Knative"),
        "deploymentMode is Knative",
    ),
    ("variables_are_known", "s3", _at("ConfigMap.data.IMAGE_TLL", "1h"), "IMAGE_TLL is no variable"),
    ("variables_are_known", "standalone", _at("ConfigMap.data.IMAGE_TLL", "1h"), "IMAGE_TLL is no variable"),
    *(
        ("variables_are_known", "s3", _at(f"ConfigMap.data.{name}", "x"), f"{name} is no variable")
        for name in ("AWS_REGOIN", "OTEL_EXPORTER_OTLP_ENDPONT", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT")
    ),
    ("no_aws_variable_comes_by_envfrom", "s3", _region_by_configmap, "AWS_REGION comes by envFrom"),
    *(
        ("no_secret_can_be_read_by_everybody", "s3", _at(f"ConfigMap.data.{name}", "x"), f"{name} is written out")
        for name in ("KSERVE_TOKEN", "AWS_SECRET_ACCESS_KEY", "OTEL_EXPORTER_OTLP_HEADERS")
    ),
    ("the_environment_is_accepted", "pvc", _at("ConfigMap.data.RUNTIME_TIMEOUT", "5 minutes"), "refuses RUNTIME_TIME"),
    (
        "references_are_resolved",
        "pvc",
        _without("PersistentVolumeClaim"),
        "PersistentVolumeClaim 'image-generation-mcp'",
    ),
    ("references_are_resolved", "local", _without("ServiceAccount"), "ServiceAccount 'image-generation-mcp' is not"),
    ("references_are_resolved", "local", _without("ConfigMap"), "is not among the rendered objects"),
    ("references_are_resolved", "local", _at(f"{SIDECAR}.envFrom.1.secretRef.optional", False), "Secret 'image-gen"),
    ("references_are_resolved", "local", _at(f"{POD}.volumes.2", ...), "mounts 'images', which is no volume"),
    (
        "references_are_resolved",
        "prod",
        _at(f"{POD}.containers.0.env.1.value", "pvc://modles/stable-diffusion"),
        "PersistentVolumeClaim 'modles' is not among",
    ),
    (
        "references_are_resolved",
        "serving-runtime",
        _at(f"{POD}.model.storageUri", "pvc://modles"),
        "PersistentVolumeClaim 'modles' is not among",
    ),
    (
        "the_optional_secret_is_the_documented_one",
        "local",
        _at(f"{SIDECAR}.envFrom.1.secretRef.name", "typo"),
        "optional Secret 'typo'",
    ),
    ("selectors_match_the_pod", "local", _at("Service.spec.selector.component", "preditcor"), "Service/image-gener"),
    ("selectors_match_the_pod", "prod", _at("PodMonitor.spec.selector.matchLabels", {"a": "b"}), "PodMonitor/image"),
    ("selectors_match_the_pod", "prod", _at("NetworkPolicy.spec.podSelector", {}), "NetworkPolicy/image-generation-m"),
    ("selectors_match_the_pod", "prod", _at("PodDisruptionBudget.spec.selector", {}), "PodDisruptionBudget/image-g"),
    ("no_object_has_a_label_of_kserve", "local", _at("Service.metadata.labels.component", "x"), "the label component"),
    (
        "no_object_has_a_label_of_kserve",
        "prod",
        _at("PodMonitor.metadata.labels.serving~kserve~io/inferenceservice", "x"),
        "KServe deletes",
    ),
    ("ports_lead_somewhere", "local", _at("Service.spec.ports.0.targetPort", "http"), "leads to http, which nothing"),
    ("ports_lead_somewhere", "prod", _at("PodMonitor.spec.podMetricsEndpoints.0.port", "m"), "scrapes port 'm'"),
    ("ports_lead_somewhere", "local", _at(f"{SIDECAR}.livenessProbe.httpGet.port", 8001), "asks port 8001"),
    (
        "endpoints_are_told_apart",
        "prod",
        _at("PodMonitor.spec.podMetricsEndpoints.1.relabelings", ...),
        "two endpoints are {'container': 'mcp-image-sidecar', 'endpoint': 'metrics'}",
    ),
    ("the_sidecar_listens_where_its_ports_say", "local", _at("ConfigMap.data.LISTEN_PORT", "8001"), "listens on"),
    ("the_sidecar_listens_where_its_ports_say", "local", _at("ConfigMap.data.LISTEN_HOST", ...), "is 127.0.0.1"),
    (
        "the_endpoint_is_the_runtime_beside_it",
        "local",
        _at("ConfigMap.data.KSERVE_ENDPOINT", "http://localhost:8081/v1/models/stable-diffusion"),
        "is not the port of kserve-container",
    ),
    (
        "the_endpoint_is_the_runtime_beside_it",
        "attach-model",
        _at("InferenceService.metadata.name", "elsewhere"),
        "the runtime serves 'elsewhere'",
    ),
    ("only_the_sidecars_ports_are_open", "prod", _at("NetworkPolicy.spec.ingress.0.ports.0.port", 8080), "8080 takes"),
    ("only_the_sidecars_ports_are_open", "prod", _at("NetworkPolicy.spec.ingress.0.from", ...), "admits everybody"),
    *(
        ("only_the_sidecars_ports_are_open", "prod", _at(f"NetworkPolicy.spec.{path}", value), text)
        for path, value, text in (
            ("ingress.0.ports.0.endPort", 8080, "'endPort': 8080"),
            ("ingress.0.ports.0.protocol", "UDP", "'protocol': 'UDP'"),
            ("ingress.0.ports", [], "every port"),
            ("ingress.1", ..., "not 8000 and 9090"),
            ("policyTypes", ["Egress"], "not 8000 and 9090"),
            ("policyTypes", ["Ingress", "Egress"], "lets nothing out"),
            ("ingress.0.from.0.namespaceSelector", {}, "admits every namespace"),
            ("ingress.0.from.0.namespaceSelector", {"matchLabels": {}}, "admits every namespace"),
            ("ingress.0.from.0", {"ipBlock": {"cidr": "0.0.0.0/0"}}, "admits every address, 0.0.0.0/0"),
            ("ingress.0.from.0", {"ipBlock": {"cidr": "::/0"}}, "admits every address, ::/0"),
        )
    ),
    *(
        ("prod_is_guarded_and_scraped", "prod", _without(kind), f"prod: has no {kind}")
        for kind in ("NetworkPolicy", "PodMonitor", "PrometheusRule", "ScaledObject", "PodDisruptionBudget")
    ),
    (
        "the_service_stays_in_the_cluster",
        "local",
        _at("Service.spec.type", "LoadBalancer"),
        "is a LoadBalancer with",
    ),
    ("the_service_stays_in_the_cluster", "standalone", _at("Service.spec.type", "NodePort"), "is a NodePort with"),
    (
        "the_service_stays_in_the_cluster",
        "s3",
        _at("Service.spec.externalIPs", ["192.0.2.7"]),
        "['192.0.2.7']: reached",
    ),
    *(
        ("what_is_scraped_is_served", "prod", _at(f"PodMonitor.spec.podMetricsEndpoints.{path}", value), text)
        for path, value, text in (
            ("0.path", "/metric", "scrapes /metric on port 'metrics'"),
            ("0.port", "mcp", "scrapes /metrics on port 'mcp'"),
            ("0", {"portNumber": 9090}, "scrapes /metrics on port None"),
            ("0", ..., "does not scrape /metrics on"),
            ("1", ..., "does not scrape /metrics/runtime"),
        )
    ),
    (
        "the_scraper_may_scrape",
        "prod",
        _at("ScaledObject.spec.triggers.0.metadata.serverAddress", "https://prometheus.monitoring.example.org"),
        "which is no Service",
    ),
    *(
        ("the_sidecar_has_the_memory_it_needs", "local", _at(f"{SIDECAR}.resources.{path}", value), f"limit is {text}")
        for path, value, text in (("limits.memory", "128Mi", "128Mi"), ("limits", ..., "None"))
    ),
    (
        "the_scraper_may_scrape",
        "prod",
        _at("ScaledObject.spec.triggers.0.metadata.serverAddress", "http://prometheus.observability.svc:9090"),
        "'observability', which the NetworkPolicy does not admit",
    ),
    ("every_container_asks_for_cpu", "local", _at(f"{SIDECAR}.resources.requests.cpu", ...), "requests no cpu"),
    ("every_container_asks_for_cpu", "local", _at(f"{POD}.containers.0.resources", {}), "kserve-container requests"),
    ("containers_are_restricted", "local", _at(f"{SIDECAR}.securityContext", ...), "mcp-image-sidecar lacks securityC"),
    ("containers_are_restricted", "attach-model", _at(f"{POD}.containers.0.securityContext", ...), "lacks securityC"),
    *(
        ("containers_are_restricted", "s3", _at(f"{POD}.containers.0.securityContext.{key}", value), f"lacks {text}")
        for key, value, text in (
            ("runAsNonRoot", ..., "securityContext runAsNonRoot"),
            ("allowPrivilegeEscalation", True, "securityContext allowPrivilegeEscalation"),
            ("capabilities", {"drop": []}, "securityContext capabilities.drop"),
            ("capabilities.add", ["NET_BIND_SERVICE"], "securityContext capabilities.add"),
            ("privileged", True, "securityContext privileged"),
            ("seccompProfile", {"type": "Unconfined"}, "securityContext seccompProfile"),
            ("readOnlyRootFilesystem", False, "securityContext readOnlyRootFilesystem"),
            ("runAsUser", 0, "securityContext a runAsUser"),
        )
    ),
    ("containers_are_restricted", "local", _at(f"{POD}.initContainers", [{"name": "first"}]), "first lacks"),
    ("every_container_asks_for_cpu", "local", _at(f"{POD}.initContainers", [{"name": "first"}]), "first requests no"),
    *(
        ("nothing_of_the_node_is_shared", overlay, _at(path, value), text)
        for overlay, path, value, text in (
            ("local", f"{POD}.hostNetwork", True, "has hostNetwork"),
            ("local", f"{POD}.hostPID", True, "has hostPID"),
            ("local", f"{POD}.hostIPC", True, "has hostIPC"),
            ("serving-runtime", "ServingRuntime.spec.hostIPC", True, "has hostIPC"),
            ("standalone", "Deployment.spec.template.spec.hostNetwork", True, "has hostNetwork"),
            ("local", f"{SIDECAR}.ports.0.hostPort", 8000, "mcp-image-sidecar has the hostPort 8000"),
            ("attach-containers", f"{SIDECAR}.ports.0.hostPort", 8000, "mcp-image-sidecar has the hostPort 8000"),
            ("pvc", f"{POD}.volumes.0", {"name": "sidecar-tmp", "hostPath": {"path": "/tmp"}}, "'sidecar-tmp' is a h"),
        )
    ),
    ("pods_are_restricted", "local", _at(f"{POD}.securityContext", ...), "lacks securityContext.runAsNonRoot"),
    ("pods_are_restricted", "local", _at(f"{POD}.automountServiceAccountToken", ...), "lacks automountService"),
    ("pods_are_restricted", "attach-model", _at(f"{POD}.enableServiceLinks", ...), "lacks enableServiceLinks"),
    ("pods_are_restricted", "local", _at("Namespace.metadata.labels", {}), "does not enforce the restricted"),
    ("the_store_has_room", "local", _at("ConfigMap.data.STORAGE_MAX_BYTES", "5GiB"), "it must be less"),
    ("the_store_has_room", "local", _at("ConfigMap.data.STORAGE_MAX_BYTES", ...), "STORAGE_MAX_BYTES is None"),
    ("the_store_has_room", "local", _at(f"{POD}.volumes.2.emptyDir", {}), "has None bytes"),
    ("the_store_has_room", "local", _at(f"{POD}.volumes.2.emptyDir.sizeLimit", "4G"), "has 4000000000 bytes"),
    ("the_store_has_room", "local", _at(f"{POD}.volumes.2.emptyDir.sizeLimit", "5GiB"), "has None bytes"),
    ("the_store_has_room", "s3", _at("ConfigMap.data.SPOOL_PATH", "/tmp/spool"), "'sidecar-tmp' has 1073741824"),
    ("the_store_has_room", "s3", _at("ConfigMap.data.SPOOL_PATH", "/srv/spool"), "SPOOL_PATH /srv/spool is on no"),
    ("the_store_has_room", "local", _at("ConfigMap.data.STORAGE_PATH", "/srv/images"), "is on no volume"),
    (
        "the_store_has_room",
        "pvc",
        _at("PersistentVolumeClaim.spec.resources.requests.storage", "40Gi"),
        "it must be less",
    ),
    ("a_claim_is_written_by_its_group", "pvc", _at(f"{POD}.securityContext.fsGroup", ...), "has no fsGroup"),
    (
        "a_claim_is_written_by_its_group",
        "pvc",
        _at(f"{POD}.securityContext.fsGroupChangePolicy", ...),
        "every start goes through all files of 'images'",
    ),
    ("a_claim_is_written_by_its_group", "attach-model-pvc-rwx", _at(f"{POD}.securityContext", ...), "has no fsGroup"),
    (
        "volumes_are_defined_once",
        "attach-model-s3",
        _at(f"{POD}.volumes.0", {"name": "images", "emptyDir": {}}),
        "the volume 'images' is defined 2 times",
    ),
    *(
        ("volumes_are_disks_that_can_be_written", overlay, _at(path, value), text)
        for overlay, path, value, text in (
            ("pvc", f"{POD}.volumes.2.persistentVolumeClaim.readOnly", True, "'images' is read-only"),
            ("local", f"{SIDECAR}.volumeMounts.1.readOnly", True, "'images' is read-only"),
            ("s3", f"{POD}.volumes.2.emptyDir.medium", "Memory", "'images' is memory"),
        )
    ),
    ("other_paths_are_writable", "s3", _at("ConfigMap.data.SPOOL_PATH", "/srv/spool"), "/srv/spool is on no volume"),
    ("other_paths_are_writable", "local", _at(f"{SIDECAR}.volumeMounts.0", ...), "/tmp is on no volume"),
    ("several_pods_share_their_store", "local", _at(f"{POD}.maxReplicas", 2), "up to 2 replicas on an emptyDir"),
    ("several_pods_share_their_store", "local", _at(f"{POD}.deploymentStrategy", ...), "needs the strategy Recreate"),
    ("a_node_can_be_drained", "prod", _at(f"{POD}.minReplicas", 1), "would block every drain"),
    *(
        (
            "a_node_can_be_drained",
            "prod",
            _at("PodDisruptionBudget.spec", {"selector": {}, **budget}),
            "lets none of the 2",
        )
        for budget in ({"maxUnavailable": 0}, {"maxUnavailable": "0%"}, {"minAvailable": 2}, {"minAvailable": "51%"})
    ),
    (
        "several_pods_share_their_store",
        "pvc",
        _at("PersistentVolumeClaim.spec.accessModes", ["ReadWriteOnce"]),
        "a second pod cannot mount",
    ),
    ("the_autoscaler_is_the_right_one", "prod", _without("ScaledObject"), "autoscalerClass is external with 0"),
    ("the_autoscaler_is_the_right_one", "prod", _at("ScaledObject.spec.scaleTargetRef.name", "x"), "scales x, KServe"),
    (
        "the_autoscaler_is_the_right_one",
        "attach-model-s3",
        _at("InferenceService.metadata.annotations.serving~kserve~io/autoscalerClass", "hpa"),
        "autoscalerClass is hpa with 1",
    ),
    ("the_autoscaler_is_the_right_one", "prod", _at("ScaledObject.spec.maxReplicaCount", 9), "has other bounds than"),
    ("the_autoscaler_is_the_right_one", "prod", _at("ScaledObject.metadata.namespace", "x"), "of other namespaces"),
    (
        "the_autoscaler_is_the_right_one",
        "prod",
        _at("ScaledObject.spec.triggers.0.metadata.query", 'sum(imagegen_queue_dept{namespace="image-generation"})'),
        "asks for ['imagegen_queue_dept']",
    ),
    ("a_rollout_needs_no_spare_gpu", "prod", _at(f"{POD}.deploymentStrategy.rollingUpdate", ...), "is None, not"),
    (
        "a_rollout_needs_no_spare_gpu",
        "prod",
        _at(f"{POD}.deploymentStrategy.rollingUpdate.maxSurge", 1),
        "a surge wants a GPU",
    ),
    ("nothing_is_cut_off_when_a_pod_ends", "local", _at(f"{POD}.terminationGracePeriodSeconds", 310), "is 310, which"),
    ("nothing_is_cut_off_when_a_pod_ends", "local", _at(f"{POD}.containers.0.lifecycle", ...), "preStop is None"),
    ("nothing_is_cut_off_when_a_pod_ends", "local", _at(f"{POD}.timeout", ...), "timeout is 60"),
    ("probes_ask_the_right_routes", "local", _at(f"{SIDECAR}.readinessProbe.httpGet.path", "/livez"), "asks /livez"),
    ("probes_ask_the_right_routes", "local", _at(f"{SIDECAR}.livenessProbe.httpGet.port", "mcp"), "clients may fill"),
    ("probes_ask_the_right_routes", "local", _at(f"{POD}.containers.0.livenessProbe", {}), "is probed by HTTP"),
    ("probes_ask_the_right_routes", "s3", _at(f"{SIDECAR}.startupProbe.failureThreshold", ...), "gives up after 15 s"),
    (
        "nothing_is_cut_off_when_a_pod_ends",
        "s3",
        _at(f"{SIDECAR}.lifecycle", {"preStop": {"sleep": {"seconds": 60}}}),
        "the sidecar has a preStop",
    ),
    ("hosts_of_the_service_are_answered", "local", _at("Service.metadata.name", "other"), "ALLOWED_HOSTS lacks other"),
]


@pytest.mark.parametrize(
    ("assertion", "overlay", "edit", "line"), MUTATIONS, ids=[f"{m[0]}:{m[3][:30]}" for m in MUTATIONS]
)
def test_what_is_wrong_is_said_in_one_line(
    renderings: dict[str, Rendering], assertion: str, overlay: str, edit: Edit, line: str
) -> None:
    rendering = copy.deepcopy(renderings[overlay])
    edit(rendering)
    (asserted,) = (function for function in ASSERTIONS if getattr(function, "__name__", "") == assertion)
    found = list(asserted(rendering))
    assert any(line in text for text in found), found
    assert all("\n" not in text for text in found)
    assert {*found} <= {*broken(rendering)}


@pytest.mark.parametrize(
    ("overlay", "edit", "field"),
    [
        ("prod", _at("PodMonitor.spec.podMetricsEndpoints", ...), "podMetricsEndpoints"),
        ("standalone", _at("Deployment.spec.template.metadata.labels", ...), "labels"),
        ("local", _at(f"{POD}.containers.0.name", ...), "name"),
        ("local", _at(f"{SIDECAR}.resources.limits.memory", "lots"), "lots"),
    ],
)
def test_an_assertion_that_cannot_even_look_says_so_in_a_line(
    renderings: dict[str, Rendering], overlay: str, edit: Edit, field: str
) -> None:
    rendering = copy.deepcopy(renderings[overlay])
    edit(rendering)
    said = [line for line in broken(rendering) if line.startswith("nobody can say whether")]
    assert said
    assert all(field in line for line in said)


def test_a_claim_with_the_model_is_mounted_as_it_is(renderings: dict[str, Rendering]) -> None:
    for name in ("local", "serving-runtime"):
        (pod,) = pods(renderings[name])
        mount = next(mount for mount in pod.containers[0]["volumeMounts"] if mount["mountPath"] == "/mnt/models")
        assert (mount["readOnly"], mount["subPath"]) == (True, "stable-diffusion")
        assert pod.volumes[mount["name"]]["persistentVolumeClaim"]["claimName"] == "models"
        assert pod.all_containers == pod.containers


def test_a_model_from_elsewhere_comes_by_an_init_container_of_kserves(renderings: dict[str, Rendering]) -> None:
    rendering = copy.deepcopy(renderings["local"])
    _at(f"{POD}.containers.0.env.1.value", "hf://someone/stable-diffusion")(rendering)
    (pod,) = pods(rendering)
    assert [container["name"] for container in pod.all_containers[:1]] == ["storage-initializer"]
    assert broken(rendering) == []  # what it may do is said by the cluster's ClusterStorageContainer


def test_a_model_overrides_its_runtime_as_kserve_merges_them(renderings: dict[str, Rendering]) -> None:
    rendering = copy.deepcopy(renderings["serving-runtime"])
    _at(f"{POD}.model.args", ["--dtype=float16"])(rendering)
    _at(f"{POD}.model.env", [{"name": "HF_HOME", "value": "/tmp/hf"}, {"name": "A", "value": "1"}])(rendering)
    _at(f"{POD}.model.securityContext", {"runAsUser": 2000})(rendering)
    (pod,) = pods(rendering)
    runtime = pod.containers[0]
    assert runtime["args"] == ["--model_name={{.Name}}", "--model_dir=/mnt/models", "--dtype=float16"]
    assert {entry["name"]: entry["value"] for entry in runtime["env"]} == {"HF_HOME": "/tmp/hf", "A": "1"}
    assert (runtime["securityContext"]["runAsUser"], runtime["securityContext"]["runAsNonRoot"]) == (2000, True)
    assert broken(rendering) == []


@pytest.mark.parametrize("mode", ["Standard", "RawDeployment"])
def test_both_names_of_the_mode_are_accepted(renderings: dict[str, Rendering], mode: str) -> None:
    rendering = copy.deepcopy(renderings["local"])
    _at("InferenceService.metadata.annotations.serving~kserve~io/deploymentMode", mode)(rendering)
    assert broken(rendering) == []


def test_what_kubernetes_fills_in_itself_is_no_mistake(renderings: dict[str, Rendering]) -> None:
    rendering = copy.deepcopy(renderings["prod"])
    _at("NetworkPolicy.spec.policyTypes", ...)(rendering)
    _at("PodMonitor.spec.podMetricsEndpoints.0.path", ...)(rendering)
    assert broken(rendering) == []


def test_without_a_checker_of_custom_kinds_the_core_kinds_are_checked_and_it_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], renderings: dict[str, Rendering]
) -> None:
    monkeypatch.delenv("CUSTOM_KINDS_CHECKER", raising=False)
    rendering = copy.deepcopy(renderings["local"])
    _of(rendering, "Service")["spec"]["port"] = 80
    assert any("Service/" in line for line in invalid(rendering))
    monkeypatch.setattr("tools.manifests.__main__.problems_of", lambda _: ([rendering], []))
    monkeypatch.setattr(sys, "argv", ["manifests"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert (ended.value.code, "CUSTOM_KINDS_CHECKER" in capsys.readouterr().out) == (0, True)


def test_a_checker_that_is_named_and_not_there_is_no_checker_that_found_nothing(
    monkeypatch: pytest.MonkeyPatch, renderings: dict[str, Rendering]
) -> None:
    monkeypatch.setenv("CUSTOM_KINDS_CHECKER", "/nowhere/checker")
    with pytest.raises(FileNotFoundError):
        list(invalid(renderings["local"]))


def test_every_assertion_is_seen_to_fail() -> None:
    assert {mutation[0] for mutation in MUTATIONS} == {getattr(function, "__name__", "") for function in ASSERTIONS}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (5, 5),
        ("12", 12),
        ("1k", 1000),
        ("5M", 5 * 10**6),
        ("4G", 4 * 10**9),
        ("1.5T", 15 * 10**11),
        ("2P", 2 * 10**15),
        ("1Ki", 1024),
        ("512Mi", 512 * 2**20),
        ("0.5Gi", 2**29),
        ("2Ti", 2**41),
        ("1Ei", 2**60),
        ("1500m", 1),
        ("1e9", 10**9),
        ("12E", 12 * 10**18),
    ],
)
def test_a_quantity_is_read_as_kubernetes_reads_it(text: str | int, value: int) -> None:
    assert quantity(text) == value


@pytest.mark.parametrize("text", ["", "Gi", "5GiB", "5K", "5 Gi", "-1", "1.2.3", "5g", "1ki"])
def test_what_is_no_quantity_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no quantity"):
        quantity(text)


def test_a_sidecar_that_differs_in_one_place_is_found(renderings: dict[str, Rendering]) -> None:
    other = copy.deepcopy(renderings["s3"])
    _at(f"{SIDECAR}.resources", {})(other)
    assert list(different_sidecars([renderings["local"], other])) == [
        "s3: the sidecar's resources is not the one of local"
    ]
    assert list(different_sidecars([*renderings.values()])) == []


def test_no_two_renderings_share_a_namespace(renderings: dict[str, Rendering]) -> None:
    namespaces = {
        name: {document["metadata"]["namespace"] for document in rendering.documents if document["kind"] != "Namespace"}
        for name, rendering in renderings.items()
    }
    assert all(len(found) == 1 for found in namespaces.values()), namespaces
    assert len(set().union(*namespaces.values())) == len(namespaces), namespaces


OTHER_NAMES = [
    ("networkpolicy/kustomization", "NetworkPolicy/image-generation-mcp: selects"),
    ("podmonitor/kustomization", "PodMonitor/image-generation-mcp: selects"),
    ("pdb/kustomization", "PodDisruptionBudget/image-generation-mcp: selects"),
    (
        "keda/kustomization",
        "ScaledObject/image-generation-mcp: scales eu-west-3-predictor, KServe calls the Deployment water-",
    ),
    ("keda/namespace/replacement", "ScaledObject/image-generation-mcp: counts generations of other namespaces"),
]


@pytest.mark.parametrize(("part", "line"), OTHER_NAMES, ids=[part for part, _ in OTHER_NAMES])
def test_a_component_that_does_not_ask_for_the_owners_names_is_found(combined: Path, part: str, line: str) -> None:
    component = combined / "kustomize" / "components" / f"{part}.yaml"
    source = re.search(r"\{kind: InferenceService, fieldPath: [\w.]+\}", component.read_text())
    assert source is not None
    spoil(combined, str(component), source[0], "{kind: ConfigMap, name: names, fieldPath: data.region}")
    assert any(line in text for text in broken(rendered(combined / "kustomize" / "examples" / "attach-model-s3")))


def test_monitorings_namespace_stands_in_one_place(tree: Path) -> None:
    prod = ROOT / "kustomize" / "overlays" / "prod"
    shutil.copytree(prod, tree / "kustomize" / "overlays" / "prod")
    spoil(tree, "kustomize/overlays/prod/names.yaml", "operated.monitoring.svc", "operated.watchers.svc")
    rendering = rendered(tree / "kustomize" / "overlays" / "prod")
    (rule,) = [rule for rule in _of(rendering, "NetworkPolicy")["spec"]["ingress"] if rule["ports"][0]["port"] == 9090]
    assert rule["from"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "watchers"}}}]
    assert broken(rendering) == []


@pytest.fixture
def tree(tmp_path: Path, renderings: dict[str, Rendering]) -> Path:
    """A copy of what is rendered, to be spoilt; two overlays are enough."""
    for part in ("kustomize", "manifests"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("examples", "prod", "standalone"))
    return tmp_path


@pytest.fixture
def combined(tmp_path: Path, renderings: dict[str, Rendering]) -> Path:
    """A copy of all that is rendered, with the combinations of attaching."""
    return with_combinations(ROOT, tmp_path)


def spoil(tree: Path, path: str, before: str, after: str) -> None:
    file = tree / path
    text = file.read_text()
    assert before in text
    file.write_text(text.replace(before, after))


def test_a_name_that_stands_in_two_places_is_found(tree: Path) -> None:
    spoil(
        tree, "manifests/inferenceservice/inferenceservice.yaml", "HF_HOME, value: ", "HF_HOME, value: stable-diffusion"
    )
    local = tree / "kustomize" / "overlays" / "local"
    assert list(names_elsewhere(tree, local)) == [
        "names.yaml: model is 'stable-diffusion', and that stands somewhere else too"
    ]


def test_a_name_that_goes_nowhere_is_found(tree: Path) -> None:
    spoil(tree, "kustomize/overlays/local/names.yaml", "data:", "data:\n  bucket: example")
    assert list(names_elsewhere(tree, tree / "kustomize" / "overlays" / "local")) == ["names.yaml: bucket goes nowhere"]


SIDECAR_FIRST = """
patches:
  - target: {kind: InferenceService}
    patch: '[{"op": "move", "from": "/spec/predictor/containers/1", "path": "/spec/predictor/containers/0"}]'
components:"""
BAD_INPUT = [
    ("manifests/sidecar/sidecar.env", "RUNTIME_TIMEOUT", "RUNTIME_TIMEUOT", "RUNTIME_TIMEUOT is no variable"),
    ("kustomize/components/pvc-rwx/kustomization.yaml", "claimName: image-generation-mcp", "claimName: gone", "'gone'"),
    (
        "kustomize/overlays/pvc/kustomization.yaml",
        "components:",
        SIDECAR_FIRST,
        "pvc: InferenceService/image-generation: containers are ['mcp-image-sidecar', 'kserve-container']",
    ),
    (
        "manifests/inferenceservice/inferenceservice.yaml",
        "runAsNonRoot: true",
        "runAsNonRoot: false",
        "lacks securityContext runAsNonRoot: true",
    ),
    ("kustomize/overlays/pvc/names.yaml", "pvc://models/", "pvc://modles/", "PersistentVolumeClaim 'modles' is not"),
    ("kustomize/components/names/kustomization.yaml", "data.runtime-image", "data.runtime-imaeg", "runtime-imaeg"),
]


@pytest.mark.parametrize(("path", "before", "after", "line"), BAD_INPUT, ids=[bad[3] for bad in BAD_INPUT])
def test_bad_input_fails_the_command(tree: Path, path: str, before: str, after: str, line: str) -> None:
    spoil(tree, path, before, after)
    command = [sys.executable, "-m", "tools.manifests", str(tree)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "")
    assert any(line in text for text in done.stdout.splitlines()), done.stdout


def leaves(value: Any, path: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {path: value}
    return {key: leaf for name, below in value.items() for key, leaf in leaves(below, f"{path}.{name}").items()}


@pytest.mark.parametrize("part", ["attach/model", "attach/containers", "pvc-rwx", "keda"])
def test_the_deployment_guide_says_what_attaching_overwrites(part: str) -> None:
    component = ROOT / "kustomize" / "components" / part / "kustomization.yaml"
    patch = yaml.safe_load(yaml.safe_load(component.read_text())["patches"][0]["patch"])
    written = leaves(patch["spec"], "spec") | patch["metadata"].get("annotations", {})
    text = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| (?:the annotation )?`([\w./]+)` \| `?(\w+)", text, re.MULTILINE)
    assert {name: str(value).lower() for name, value in written.items()}.items() <= {
        (name, value.lower()) for name, value in table
    }


def test_the_deployment_guide_knows_every_overlay_and_names_no_folder_that_is_not_there() -> None:
    text = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    for folder in folders(ROOT):
        assert f"`{folder.name}`" in text or f"examples/{folder.name}`" in text, folder.name
    for path in re.findall(r"\b(?:kustomize|manifests)/[\w./-]+\w", text):
        assert (ROOT / path).exists(), path


def test_the_kustomization_of_the_deployment_guide_can_be_copied(
    tmp_path: Path, renderings: dict[str, Rendering]
) -> None:
    text = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    kustomization, names = re.findall(r"^```yaml\n(apiVersion: .*?)^```", text, re.MULTILINE | re.DOTALL)
    (tmp_path / "kustomization.yaml").write_text(kustomization)
    (tmp_path / "names.yaml").write_text(names)
    shutil.copy(ROOT / "kustomize" / "examples" / "attach-model" / "inferenceservice.yaml", tmp_path)
    for part in ("kustomize", "manifests"):
        shutil.copytree(ROOT / part, tmp_path / "mcp-image-sidecar" / part)
    rendering = replace(rendered(tmp_path), own_claims=frozenset({"models"}))
    assert [*broken(rendering), *invalid(rendering)] == []
    assert {"PodMonitor", "NetworkPolicy", "ScaledObject", "PodDisruptionBudget"} <= {
        document["kind"] for document in rendering.documents
    }


def test_the_patch_of_the_deployment_guide_keeps_an_older_name_of_the_mode(combined: Path) -> None:
    text = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    (patch,) = re.findall(r"^```yaml\n(patches:\n.*?)^```", text, re.MULTILINE | re.DOTALL)
    folder = combined / "kustomize" / "examples" / "attach-model"
    with (folder / "kustomization.yaml").open("a") as kustomization:
        kustomization.write(patch)
    annotations = _of(rendered(folder), "InferenceService")["metadata"]["annotations"]
    assert annotations["serving.kserve.io/deploymentMode"] == "RawDeployment"


def with_a_models_file(tree: Path, endpoint: str) -> Rendering:
    """The overlay `local`, with what the deployment guide says of a MODELS_FILE."""
    text = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    (lines,) = re.findall(
        r"^```yaml\n(configMapGenerator:\n(?:(?!```).)*MODELS_FILE.*?)^```", text, re.MULTILINE | re.DOTALL
    )
    folder = tree / "kustomize" / "overlays" / "local"
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    added = yaml.safe_load(lines)
    kustomization["patches"] += added["patches"]
    kustomization["configMapGenerator"] = added["configMapGenerator"]
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    model = {"endpoint": endpoint, "extra_parameters": {"scheduler": "ddim"}}
    (folder / "models.yaml").write_text(yaml.safe_dump({"models": [model]}))
    return rendered(folder)


def test_a_models_file_comes_as_the_deployment_guide_says(tree: Path, renderings: dict[str, Rendering]) -> None:
    rendering = with_a_models_file(tree, "http://localhost:8080/v1/models/stable-diffusion")
    assert broken(rendering) == []
    assert list(different_sidecars([renderings["s3"], rendering])) == []
    assert list(invalid(rendering)) == []


def test_a_models_file_is_read_as_the_sidecar_reads_it(tree: Path) -> None:
    said = broken(with_a_models_file(tree, "http://localhost:8081/v1/models/sdxl"))
    assert any("which is not the port of kserve-container" in line for line in said), said


@pytest.mark.parametrize("store", ["pvc-rwx", "s3"])
def test_what_comes_after_the_store_may_come_in_any_order(combined: Path, store: str) -> None:
    folder = combined / "kustomize" / "examples" / f"attach-model-{store}"
    before = rendered(folder).documents
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    form, volumes, store_component, *beside = kustomization["components"]
    kustomization["components"] = [form, volumes, store_component, *reversed(beside)]
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    assert sorted(rendered(folder).documents, key=str) == sorted(before, key=str)


def test_a_store_before_the_volumes_is_refused(combined: Path) -> None:
    folder = combined / "kustomize" / "examples" / "attach-model-s3"
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    kustomization["components"].insert(0, kustomization["components"].pop(2))
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    with pytest.raises(NotRendered):
        rendered(folder)


def test_the_commands_of_the_deployment_guide_name_what_is_there(renderings: dict[str, Rendering]) -> None:
    text = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    commands = re.findall(r"^ +kubectl (.*?)(?: +#.*)?$", text, re.MULTILINE)
    examples = [*yaml.safe_load_all((ROOT / "manifests" / "model-claim.example.yaml").read_text())]
    for command in commands:
        for option, path in re.findall(r"(-[kf]) (\S+)", command):
            assert (ROOT / path).is_dir() == (option == "-k"), command
            assert (ROOT / path).exists(), command
        for namespace in re.findall(r"-n (\S+)", command):
            (rendering,) = (found for found in renderings.values() if found.one("Namespace", namespace))
            known = {f"{document['kind'].lower()}/{document['metadata']['name']}" for document in examples}
            known |= {f"{document['kind'].lower()}/{document['metadata']['name']}" for document in rendering.documents}
            assert {*re.findall(r"\b(?:service|pod)/\S+", command)} <= known, command
    assert len(commands) >= 9


def test_the_command_that_makes_the_secret_makes_what_the_pod_reads(renderings: dict[str, Rendering]) -> None:
    text = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    command = re.search(r"^ +kubectl (.*create secret.*)$", text, re.MULTILINE)
    assert command is not None
    made = subprocess.run(
        [str(kubectl()), *command[1].split(), "--dry-run=client", "-o", "yaml"],
        capture_output=True,
        text=True,
        check=True,
    )
    secret = yaml.safe_load(made.stdout)
    (pod,) = pods(renderings["s3"])
    read = [source["secretRef"]["name"] for source in pod.containers[1]["envFrom"] if "secretRef" in source]
    assert ([secret["metadata"]["name"]], secret["metadata"]["namespace"]) == (read, "image-generation-s3")
    assert {*secret["data"]} == {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
