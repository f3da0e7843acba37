"""The sidecar attached to an InferenceService of others: each store, with all that docs/deploy.md allows beside it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

ANY_REPLICAS = ("public-url", "podmonitor", "networkpolicy")
SEVERAL_REPLICAS = ("keda", "pdb")
STORES = {
    "emptydir": ANY_REPLICAS,
    "pvc-rwx": (*ANY_REPLICAS, *SEVERAL_REPLICAS),
    "s3": (*ANY_REPLICAS, *SEVERAL_REPLICAS),
}
_NAMES = {
    "public-url": {"public-url": "https://pictures.example.org"},
    "networkpolicy": {"prometheus": "http://prometheus.observability.svc:9090"},
    "s3": {"bucket": "watercolours", "region": "eu-west-3"},
}


def write_combinations(tree: Path) -> None:
    """Beside each example of attaching a folder for each store, with other names than any file of ours has."""
    for example in sorted((tree / "kustomize" / "examples").glob("attach-*")):
        for store, beside in STORES.items():
            _write(example, store, beside)


def _write(example: Path, store: str, beside: tuple[str, ...]) -> None:
    folder = example.with_name(f"{example.name}-{store}")
    shutil.copytree(example, folder)
    with _edited(folder / "kustomization.yaml") as kustomization:
        *attach, _ = kustomization["components"]  # the last one is the example's store
        kustomization["namespace"] = f"team-{folder.name}"
        kustomization["components"] = [*attach, *(f"../../components/{name}" for name in (store, *beside))]
        kustomization["transformers"] = ["../../components/keda/namespace"] if "keda" in beside else []
    with _edited(folder / "inferenceservice.yaml") as service:
        service["metadata"]["name"] = "water-colours"
    with _edited(folder / "names.yaml") as names:
        for name in (store, *beside):
            names["data"] |= _NAMES.get(name, {})


@contextmanager
def _edited(path: Path) -> Iterator[Any]:
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    yield document
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
