"""Core kinds against Kubernetes' own schemas, strictly; custom kinds by the checker beside the project, where it is."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import kubernetes_validate
import yaml

from tools.manifests.rendering import ROOT, Document, Rendering, title

KUBERNETES = "1.32"
CUSTOM = ROOT.parent / "shared" / "check-manifests"
CUSTOM_GROUPS = ("serving.kserve.io", "monitoring.coreos.com", "keda.sh")


def invalid(rendering: Rendering) -> Iterator[str]:
    for document in rendering.documents:
        if not _is_custom(document):
            yield from _core_problems(document)
    if CUSTOM.exists():
        yield from _custom_problems([document for document in rendering.documents if _is_custom(document)])


def custom_kinds_unchecked() -> str | None:
    """Why InferenceServices and their like are not held against a schema here, if they are not."""
    return None if CUSTOM.exists() else f"custom kinds are not validated: {CUSTOM.relative_to(ROOT.parent)} is not here"


def ci_accepts(reason: str | None) -> bool:
    return reason is None or not os.environ.get("CI")


def _is_custom(document: Document) -> bool:
    return document["apiVersion"].partition("/")[0] in CUSTOM_GROUPS


def _core_problems(document: Document) -> Iterator[str]:
    try:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        yield f"{title(document)}: {'.'.join(map(str, error.path))}: {error.message}"


def _custom_problems(documents: list[Document]) -> Iterator[str]:
    if not documents:
        return
    text = yaml.safe_dump_all(documents)
    done = subprocess.run([sys.executable, CUSTOM], input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        yield from (line for line in (done.stdout + done.stderr).splitlines()[:20] if line and "problems" not in line)
