"""The Dockerfile, as far as it can be read without building it (tests/container builds it)."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from tests.real_parts import require

ROOT = Path(__file__).parent.parent


def test_hadolint_finds_nothing_to_mend() -> None:
    beside = Path(sys.executable).parent
    hadolint = shutil.which("hadolint", path=str(beside)) or shutil.which("hadolint")
    require(hadolint is not None, "hadolint is not installed")
    done = subprocess.run([str(hadolint), "Dockerfile.sidecar"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_build_sees_only_what_the_dockerfile_copies() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    copied = {
        source
        for line in (ROOT / "Dockerfile.sidecar").read_text().splitlines()
        if line.startswith("COPY ") and "--from" not in line
        for source in line.split()[1:-1]
    }
    assert "*" in lines
    assert {line[1:] for line in lines if line.startswith("!")} == copied
