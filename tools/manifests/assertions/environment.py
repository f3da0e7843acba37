"""What the sidecar finds in its environment."""

from __future__ import annotations

from urllib.parse import urlsplit

from sidecar.config import VARIABLES
from sidecar.errors import BadConfiguration
from tools.manifests.configured import KNOWN, configured, settings_of, sidecar_of
from tools.manifests.foreign_variables import FOREIGN_VARIABLES
from tools.manifests.pods import RUNTIME, environment, helpers, pods, ports
from tools.manifests.rendering import Lines, Rendering, title


def variables_are_known(rendering: Rendering) -> Lines:
    for pod in pods(rendering):
        container = sidecar_of(pod)
        for name in environment(container, rendering):
            if name not in KNOWN | FOREIGN_VARIABLES | helpers(container):
                yield f"{pod.title}: {name} is no variable of the sidecar"


def no_aws_variable_comes_by_envfrom(rendering: Rendering) -> Lines:
    for pod in pods(rendering):
        container = sidecar_of(pod)
        listed = {entry["name"] for entry in container.get("env", [])}
        for name in environment(container, rendering):
            if name.startswith("AWS_") and name not in listed:
                yield f"{pod.title}: {name} comes by envFrom; IRSA's webhook puts its own into env, which wins"


_SECRETS = frozenset(variable.name for variable in VARIABLES if variable.secret) | {
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "OTEL_EXPORTER_OTLP_HEADERS",
    "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
}


def no_secret_can_be_read_by_everybody(rendering: Rendering) -> Lines:
    for pod in pods(rendering):
        for name, value in environment(sidecar_of(pod), rendering).items():
            if name in _SECRETS and value:
                yield f"{pod.title}: {name} is written out; it belongs into the Secret of manifests/secret.example.yaml"


def the_environment_is_accepted(rendering: Rendering) -> Lines:
    for pod in pods(rendering):
        try:
            settings_of(pod, rendering)
        except BadConfiguration as error:
            yield from (f"{pod.title}: the sidecar refuses {problem}" for problem in error.problems)


def the_endpoint_is_the_runtime_beside_it(rendering: Rendering) -> Lines:
    for pod, settings in configured(rendering):
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


def hosts_of_the_service_are_answered(rendering: Rendering) -> Lines:
    for pod, settings in configured(rendering):
        for document in rendering.of_kind("Service"):
            name, namespace = document["metadata"]["name"], document["metadata"]["namespace"]
            for host in (
                name,
                f"{name}.{namespace}",
                *(f"{name}.{namespace}.{end}" for end in ("svc", "svc.cluster.local")),
            ):
                if host not in settings.listen.allowed_hosts:
                    yield f"{pod.title}: ALLOWED_HOSTS lacks {host}, a name of {title(document)}"
