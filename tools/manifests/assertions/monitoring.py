"""What is scraped, and by whom."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from tools.manifests.pods import SIDECAR
from tools.manifests.rendering import Lines, Rendering, title


def endpoints_are_told_apart(rendering: Rendering) -> Lines:
    """The operator's labels of a target know the port and not the path."""
    for document in rendering.of_kind("PodMonitor"):
        seen: list[dict[str, str]] = []
        for endpoint in document["spec"]["podMetricsEndpoints"]:
            labels = {"container": SIDECAR, "endpoint": endpoint.get("port", ""), **_given_labels(endpoint)}
            if labels in seen:
                yield f"{title(document)}: two endpoints are {labels}, so that their series overwrite each other"
            seen.append(labels)


def _given_labels(endpoint: Mapping[str, Any]) -> dict[str, str]:
    steps = [step for step in endpoint.get("relabelings", []) if "sourceLabels" not in step]
    return {step["targetLabel"]: step["replacement"] for step in steps if "targetLabel" in step}


def what_is_scraped_is_served(rendering: Rendering) -> Lines:
    wanted = {("metrics", "/metrics"), ("metrics", "/metrics/runtime")}
    for document in rendering.of_kind("PodMonitor"):
        endpoints = document["spec"]["podMetricsEndpoints"]
        scraped = {(endpoint.get("port"), endpoint.get("path", "/metrics")) for endpoint in endpoints}
        for port, path in sorted(scraped - wanted, key=str):
            yield f"{title(document)}: scrapes {path} on port {port!r}, where nobody serves metrics"
        for port, path in sorted(wanted - scraped):
            yield f"{title(document)}: does not scrape {path} on port {port!r}"


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
            if admitted and host.split(".")[2:3] not in ([], ["svc"]):
                yield f"{title(document)}: asks {host}, which is no Service; the NetworkPolicy admits its second word"
            elif admitted and namespace not in admitted:
                yield f"{title(document)}: asks a Prometheus in {namespace!r}, which the NetworkPolicy does not admit"


_OF_PROD = ("NetworkPolicy", "PodMonitor", "PrometheusRule", "ScaledObject", "PodDisruptionBudget")


def prod_is_guarded_and_scraped(rendering: Rendering) -> Lines:
    """And what else there is a component for."""
    for kind in _OF_PROD if rendering.name == "prod" else ():
        if not any(rendering.of_kind(kind)):
            yield f"{rendering.name}: has no {kind}"
