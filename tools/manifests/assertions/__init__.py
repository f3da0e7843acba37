"""What must be true of a pod and of the objects around it. Each assertion yields a line for everything that is not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from tools.manifests.assertions.environment import (
    hosts_of_the_service_are_answered,
    no_aws_variable_comes_by_envfrom,
    no_secret_can_be_read_by_everybody,
    the_endpoint_is_the_runtime_beside_it,
    the_environment_is_accepted,
    variables_are_known,
)
from tools.manifests.assertions.monitoring import (
    endpoints_are_told_apart,
    prod_is_guarded_and_scraped,
    the_scraper_may_scrape,
    what_is_scraped_is_served,
)
from tools.manifests.assertions.network import (
    only_the_sidecars_ports_are_open,
    ports_lead_somewhere,
    the_service_stays_in_the_cluster,
    the_sidecar_listens_where_its_ports_say,
)
from tools.manifests.assertions.pod import (
    containers_are_in_order,
    every_container_asks_for_cpu,
    nothing_is_cut_off_when_a_pod_ends,
    probes_ask_the_right_routes,
    the_mode_is_standard,
    the_sidecar_has_the_memory_it_needs,
)
from tools.manifests.assertions.references import (
    no_object_has_a_label_of_kserve,
    references_are_resolved,
    selectors_match_the_pod,
    the_optional_secret_is_the_documented_one,
)
from tools.manifests.assertions.replicas import (
    a_node_can_be_drained,
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
    volumes_are_disks_that_can_be_written,
)
from tools.manifests.rendering import Rendering

_S = TypeVar("_S")

ASSERTIONS: tuple[Callable[[Rendering], Iterable[str]], ...] = (
    containers_are_in_order,
    the_mode_is_standard,
    variables_are_known,
    no_aws_variable_comes_by_envfrom,
    no_secret_can_be_read_by_everybody,
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
    the_service_stays_in_the_cluster,
    what_is_scraped_is_served,
    the_scraper_may_scrape,
    prod_is_guarded_and_scraped,
    every_container_asks_for_cpu,
    the_sidecar_has_the_memory_it_needs,
    containers_are_restricted,
    nothing_of_the_node_is_shared,
    pods_are_restricted,
    the_store_has_room,
    a_claim_is_written_by_its_group,
    volumes_are_defined_once,
    volumes_are_disks_that_can_be_written,
    other_paths_are_writable,
    several_pods_share_their_store,
    a_node_can_be_drained,
    the_autoscaler_is_the_right_one,
    a_rollout_needs_no_spare_gpu,
    nothing_is_cut_off_when_a_pod_ends,
    probes_ask_the_right_routes,
    hosts_of_the_service_are_answered,
)


def broken(rendering: Rendering) -> list[str]:
    """A line for everything that is not as it must be; an assertion that cannot even look says so itself."""
    return [line for assertion in ASSERTIONS for line in lines_of(assertion, rendering)]


def lines_of(assertion: Callable[[_S], Iterable[str]], subject: _S) -> Iterator[str]:
    try:
        yield from assertion(subject)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        name = getattr(assertion, "__name__", str(assertion)).replace("_", " ")
        yield f"nobody can say whether {name}: {type(error).__name__} {error}, a field that lacks or is odd"
