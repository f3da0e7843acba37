"""The documents tell the truth."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from sidecar.config import VARIABLES

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_generated_tables_are_up_to_date() -> None:
    command = [sys.executable, str(ROOT / "tools" / "generate_docs.py"), "--check"]
    done = subprocess.run(command, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_reference_has_every_variable_with_its_default() -> None:
    text = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    for variable in VARIABLES:
        assert f"| `{variable.name}`" in text
        assert variable.default is None or f"`{variable.default}`" in text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert "://" in target or (page.parent / target).exists(), target


def test_the_readme_names_only_targets_that_exist() -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"make ([a-z0-9-]+) ", (ROOT / "README.md").read_text(encoding="utf-8")))
    assert {"demo", "test"} <= named <= targets


def test_every_dependency_says_why_it_is_here() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    text = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    wanted = [*project["project"]["dependencies"], *project["dependency-groups"]["dev"]]
    for requirement in wanted:
        assert re.match(r"[A-Za-z0-9-]+", requirement)[0] in text  # type: ignore[index]


def test_the_locks_pin_by_hash_and_hold_no_address() -> None:
    for name in (
        "requirements.lock",
        "requirements-container.lock",
        "requirements-build.lock",
        "requirements-dev.lock",
    ):
        text = (ROOT / name).read_text()
        assert "://" not in text
        assert text.count("==") <= text.count("--hash=sha256:")


def test_the_container_has_the_extras_that_the_deployment_guide_says() -> None:
    text = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    assert "The extras `s3` and `otel` are in it (`requirements-container.lock`)" in text
    assert "-r requirements-container.lock" in (ROOT / "Dockerfile.sidecar").read_text()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    lock = (ROOT / "requirements-container.lock").read_text()
    for requirement in (*extras["s3"], *extras["otel"]):
        name = re.split(r"[^\w-]", requirement)[0]
        assert re.search(rf"^{name}==", lock, re.MULTILINE), name


def test_the_npm_packages_are_pinned_and_say_why_they_are_here() -> None:
    packages = json.loads((ROOT / "tests" / "npm" / "package.json").read_text(encoding="utf-8"))["dependencies"]
    text = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    for alias, pinned in packages.items():
        exact = re.fullmatch(r"(?:npm:(.+)@)?\d+\.\d+\.\d+(?:-[a-z]+\.\d+)?", pinned)
        assert exact, pinned
        assert (exact[1] or alias) in text


def test_the_changelog_has_a_place_for_what_comes_next() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    (unreleased,) = re.findall(r"^## Unreleased\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert re.search(r"^- \S", unreleased, re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_anchors_lead_to_a_heading(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text(encoding="utf-8")):
        headings = re.findall(
            r"^#+ (.+)$", (page.parent / (target or page.name)).read_text(encoding="utf-8"), re.MULTILINE
        )
        slugs = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert anchor in slugs, f"{target}#{anchor}"


def test_the_reference_names_the_file_form_of_each_secret() -> None:
    text = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    assert [variable.name for variable in VARIABLES if variable.secret and f"`{variable.name}_FILE`" not in text] == []


def test_the_client_libraries_are_pinned_and_say_why_they_are_here() -> None:
    text = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    files = sorted((ROOT / "tests" / "clients").glob("*/requirements.txt"))
    lines = [line for file in files for line in file.read_text().splitlines() if not line.startswith("#")]
    assert len(files) >= 4
    for line in lines:
        name, version = re.fullmatch(r"([a-z-]+)(?:\[[a-z]+\])?(==\d+\.\d+\.\d+|<\d+)", line).groups()  # type: ignore[union-attr]
        assert version and name in text, line


def test_make_conformance_runs_every_client_library() -> None:
    makefile = (ROOT / "Makefile").read_text()
    (named,) = re.findall(r"^CLIENTS := (.+)$", makefile, re.MULTILINE)
    assert sorted(named.split()) == [
        file.parent.name for file in sorted((ROOT / "tests" / "clients").glob("*/drive.py"))
    ]
