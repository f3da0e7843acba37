"""`pip install` that says in one sentence when there is no package index to install from.

Usage: python tools/pip_install.py ARGUMENTS OF pip install
"""

from __future__ import annotations

import re
import subprocess
import sys

_NO_INDEX = re.compile(r"after connection broken by|\(from versions: none\)")
_SENTENCE = (
    "Python packages cannot be installed: no package index has answered. Connect this machine to one, name yours with "
    "PIP_INDEX_URL, or point PIP_FIND_LINKS to a folder of wheels."
)


def main() -> int:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", *sys.argv[1:]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and _NO_INDEX.search(done.stderr):
        print(_SENTENCE, file=sys.stderr)
    else:
        sys.stdout.write(done.stdout)
        sys.stderr.write(done.stderr)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
