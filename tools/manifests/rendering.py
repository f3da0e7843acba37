"""One folder of kustomize/ as the objects that reach the cluster."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
OWN_CLAIMS = "image-generation-mcp/own-claims"
Document = dict[str, Any]
Lines = Iterator[str]
"""A line for each problem."""


class NotRendered(Exception):
    """Kustomize refuses a folder; the message is its own, in one line."""


def kubectl() -> str | None:
    """The kubectl to render with: KUBECTL, the one that `make` has set up, or the machine's."""
    own = ROOT / ".kubectl" / "kubectl"
    return os.environ.get("KUBECTL") or (str(own) if own.exists() else shutil.which("kubectl"))


@dataclass(frozen=True)
class Rendering:
    """What `kubectl kustomize` makes of a folder. `ours`: an overlay of ours, not an example of attaching.

    `own_claims` are volume claims that the namespace has from elsewhere, by an annotation of names.yaml.
    """

    name: str
    documents: list[Document] = field(default_factory=list)
    ours: bool = True
    own_claims: frozenset[str] = frozenset()

    def of_kind(self, *kinds: str) -> Iterator[Document]:
        return (document for document in self.documents if document["kind"] in kinds)

    def one(self, kind: str, name: str) -> Document | None:
        return next((found for found in self.of_kind(kind) if found["metadata"]["name"] == name), None)


def title(document: Document) -> str:
    return f"{document['kind']}/{document['metadata']['name']}"


def folders(root: Path) -> list[Path]:
    """Everything there is to render."""
    kinds = (root / "kustomize" / "overlays", root / "kustomize" / "examples")
    return sorted(path.parent for kind in kinds for path in kind.glob("*/kustomization.yaml"))


def rendered(folder: Path) -> Rendering:
    """Render a folder. Raises NotRendered."""
    program = kubectl()
    if program is None:
        raise NotRendered("kubectl is needed: `make manifests` sets it up")
    done = subprocess.run([program, "kustomize", str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotRendered(" ".join(done.stderr.split())[-400:])
    documents = [document for document in yaml.safe_load_all(done.stdout) if document]
    ours = any(found["kind"] == "Namespace" for found in documents)
    return Rendering(folder.name, documents, ours=ours, own_claims=_own_claims(folder / "names.yaml"))


def _own_claims(names: Path) -> frozenset[str]:
    document = yaml.safe_load(names.read_text(encoding="utf-8")) if names.exists() else {}
    listed = document.get("metadata", {}).get("annotations", {}).get(OWN_CLAIMS, "")
    return frozenset(listed.replace(",", " ").split())
