"""Ports, and who reaches them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tools.manifests.configured import configured, sidecar_of
from tools.manifests.pods import Pod, pods, ports
from tools.manifests.rendering import Lines, Rendering, title


def ports_lead_somewhere(rendering: Rendering) -> Lines:
    for pod in pods(rendering):
        open_ports = {port for container in pod.containers for pair in ports(container) for port in pair}
        for document in rendering.of_kind("Service"):
            for port in document["spec"]["ports"]:
                if port.get("targetPort", port["port"]) not in open_ports:
                    yield f"{title(document)}: port {port['port']} leads to {port.get('targetPort')}, which nothing has"
        for document in rendering.of_kind("PodMonitor"):
            for endpoint in document["spec"]["podMetricsEndpoints"]:
                if endpoint.get("port") not in open_ports:
                    yield f"{title(document)}: scrapes port {endpoint.get('port')!r}, which no container has"
        yield from _probes_lead_somewhere(pod)


def _probes_lead_somewhere(pod: Pod) -> Lines:
    for container in pod.containers:
        own = {port for pair in ports(container) for port in pair}
        for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
            probe = container.get(kind, {})
            port = probe.get("httpGet", probe.get("tcpSocket", {})).get("port")
            if probe and port not in own:
                yield f"{pod.title}: {container['name']}'s {kind} asks port {port!r}, which it has not"


def the_sidecar_listens_where_its_ports_say(rendering: Rendering) -> Lines:
    for pod, settings in configured(rendering):
        listens = {"mcp": settings.listen.port, "metrics": settings.listen.metrics_port}
        declared = dict(ports(sidecar_of(pod)))
        if declared != listens:
            yield f"{pod.title}: the sidecar listens on {listens}, its ports are {declared}"
        if set(settings.listen.hosts) != {"0.0.0.0", "::"}:
            hosts = ",".join(settings.listen.hosts)
            yield f"{pod.title}: LISTEN_HOST is {hosts}; the Service reaches IPv4 and IPv6 only with 0.0.0.0,::"


def the_service_stays_in_the_cluster(rendering: Rendering) -> Lines:
    for document in rendering.of_kind("Service"):
        kind, addresses = document["spec"].get("type", "ClusterIP"), document["spec"].get("externalIPs", [])
        if kind != "ClusterIP" or addresses:
            yield f"{title(document)}: is a {kind} with externalIPs {addresses}: reached from outside without a gateway"


def only_the_sidecars_ports_are_open(rendering: Rendering) -> Lines:
    wanted = [{"protocol": "TCP", "port": port} for port in (8000, 9090)]
    for document in rendering.of_kind("NetworkPolicy"):
        rules = document["spec"].get("ingress", [])
        admitted = [port for rule in rules for port in rule.get("ports") or ["every port"]]
        strangers = [port for port in admitted if port not in wanted]
        missing = [port for port in wanted if port not in admitted]
        kinds = document["spec"].get("policyTypes", ["Ingress", *(["Egress"] if "egress" in document["spec"] else [])])
        if "Egress" in kinds and not document["spec"].get("egress"):
            yield f"{title(document)}: lets nothing out: no DNS, no bucket, no traces"
        if strangers or missing or "Ingress" not in kinds:
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
