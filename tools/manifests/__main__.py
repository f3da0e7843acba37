"""Check every overlay, example and combination with an InferenceService of others: a line for each problem, exit 1 if
there is one. An argument names another tree."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from tools.manifests.assertions import broken, lines_of
from tools.manifests.attaching import write_combinations
from tools.manifests.one_place import different_sidecars, names_elsewhere
from tools.manifests.rendering import ROOT, NotRendered, Rendering, folders, rendered
from tools.manifests.schemas import checker_of_custom_kinds, invalid


def problems_of(root: Path) -> tuple[list[Rendering], list[str]]:
    """What could be rendered, and everything wrong with it."""
    renderings, problems = [], []
    for folder in folders(root):
        try:
            rendering = rendered(folder)
        except NotRendered as error:
            problems.append(f"{folder.name}: {error}")
            continue
        renderings.append(rendering)
        found = [*invalid(rendering), *broken(rendering), *names_elsewhere(root, folder)]
        problems.extend(f"{folder.name}: {line}" for line in found)
    return renderings, [*problems, *lines_of(different_sidecars, renderings)]


def with_combinations(root: Path, scratch: Path) -> Path:
    for part in ("kustomize", "manifests"):
        shutil.copytree(root / part, scratch / part)
    write_combinations(scratch)
    return scratch


def main() -> None:
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT
    with tempfile.TemporaryDirectory() as scratch:
        renderings, problems = problems_of(with_combinations(root, Path(scratch)))
    if checker_of_custom_kinds() is None:
        print(
            "KServe's, Prometheus's and KEDA's kinds are held against no schema: CUSTOM_KINDS_CHECKER names no checker"
        )
    print(*problems, sep="\n", end="\n" if problems else "")
    objects = sum(len(rendering.documents) for rendering in renderings)
    print(f"{len(renderings)} renderings, {objects} objects, {len(problems)} problems")
    sys.exit(1 if problems or not renderings else 0)


if __name__ == "__main__":
    main()
