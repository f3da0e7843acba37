"""Core kinds against Kubernetes' own schemas, strictly; custom kinds by a checker that the environment names.

CUSTOM_KINDS_CHECKER is a Python script that takes a stream of YAML, writes a line for each problem and ends with 1 if
there is one. The project has none of its own, because the schemas of KServe, Prometheus and KEDA are theirs.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import kubernetes_validate
import yaml

from tools.manifests.rendering import Document, Rendering, title

KUBERNETES = "1.32"
CUSTOM_GROUPS = ("serving.kserve.io", "monitoring.coreos.com", "keda.sh")


def invalid(rendering: Rendering) -> Iterator[str]:
    for document in rendering.documents:
        if not _is_custom(document):
            yield from _core_problems(document)
    checker = checker_of_custom_kinds()
    if checker is not None:
        yield from _custom_problems(checker, [document for document in rendering.documents if _is_custom(document)])


def checker_of_custom_kinds() -> Path | None:
    """Of InferenceServices and their like. Raises FileNotFoundError where one is named that is not there."""
    named = os.environ.get("CUSTOM_KINDS_CHECKER")
    return Path(named).resolve(strict=True) if named else None


def _is_custom(document: Document) -> bool:
    return document["apiVersion"].partition("/")[0] in CUSTOM_GROUPS


def _core_problems(document: Document) -> Iterator[str]:
    try:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        yield f"{title(document)}: {'.'.join(map(str, error.path))}: {error.message}"


def _custom_problems(checker: Path, documents: list[Document]) -> Iterator[str]:
    if not documents:
        return
    text = yaml.safe_dump_all(documents)
    done = subprocess.run([sys.executable, checker], input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        yield from (line for line in (done.stdout + done.stderr).splitlines()[:20] if line and "problems" not in line)
