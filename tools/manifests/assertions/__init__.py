"""What must be true of a pod and of the objects around it. Each assertion yields a line for everything that is not."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from tools.manifests.assertions.environment import (
    hosts_of_the_service_are_answered,
    no_aws_variable_comes_by_envfrom,
    the_endpoint_is_the_runtime_beside_it,
    the_environment_is_accepted,
    variables_are_known,
)
from tools.manifests.assertions.monitoring import (
    endpoints_are_told_apart,
    prod_is_guarded_and_scraped,
    the_scraper_may_scrape,
)
from tools.manifests.assertions.network import (
    only_the_sidecars_ports_are_open,
    ports_lead_somewhere,
    the_sidecar_listens_where_its_ports_say,
)
from tools.manifests.assertions.pod import (
    containers_are_in_order,
    every_container_asks_for_cpu,
    nothing_is_cut_off_when_a_pod_ends,
    probes_ask_the_right_routes,
    the_mode_is_standard,
)
from tools.manifests.assertions.references import (
    no_object_has_a_label_of_kserve,
    references_are_resolved,
    selectors_match_the_pod,
    the_optional_secret_is_the_documented_one,
)
from tools.manifests.assertions.replicas import (
    a_rollout_needs_no_spare_gpu,
    several_pods_share_their_store,
    the_autoscaler_is_the_right_one,
)
from tools.manifests.assertions.security import (
    containers_are_restricted,
    nothing_of_the_node_is_shared,
    pods_are_restricted,
)
from tools.manifests.assertions.volumes import (
    a_claim_is_written_by_its_group,
    other_paths_are_writable,
    the_store_has_room,
    volumes_are_defined_once,
)
from tools.manifests.rendering import Rendering

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
