"""A Ceph object gateway on loopback: one monitor, one storage daemon in memory, one gateway that speaks S3.

It is the store that decides here: it checks signatures and their ages, and of those who create an object once exactly
one succeeds. It takes some seconds to start, so all processes of a test run share one: the first to come starts it, the
last to leave stops it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import botocore.session
from botocore.config import Config

PROGRAMS = ("ceph", "ceph-authtool", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")
BUCKET = "pictures"
ACCESS_KEY, SECRET_KEY = "sidecar", "of-no-value-outside-of-this-test"
DOMAIN = "localhost"
"""Where buckets have host names of their own, for who asks by that name."""
_START_SECONDS = 60.0


def available() -> bool:
    """Whether Ceph's programs are installed (Debian: radosgw, ceph-mon, ceph-osd)."""
    return all(shutil.which(program) for program in PROGRAMS)


@dataclass(frozen=True)
class Ceph:
    """A started gateway."""

    url: str


@contextlib.contextmanager
def shared(directory: Path) -> Iterator[Ceph]:
    """The gateway of all processes that name the same directory."""
    directory.mkdir(parents=True, exist_ok=True)
    state = directory / "users.json"
    with _locked(directory):
        known = json.loads(state.read_text()) if state.exists() else None
        if known is None:
            url, pids = _start(directory / uuid.uuid4().hex[:8])
            known = {"url": url, "pids": pids, "users": 0}
        known["users"] += 1
        state.write_text(json.dumps(known))
    try:
        yield Ceph(known["url"])
    finally:
        with _locked(directory):
            known = json.loads(state.read_text())
            known["users"] -= 1
            state.write_text(json.dumps(known))
            if not known["users"]:
                state.unlink()
                for pid in known["pids"]:
                    _kill(pid)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _kill(pid: int) -> None:
    subprocess.run(["kill", "-KILL", str(pid)], check=False)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


def _start(home: Path) -> tuple[str, list[int]]:
    """The gateway's URL, and the processes to end."""
    monitor_port, gateway_port = _free_ports(2)
    fsid = str(uuid.uuid4())
    for part in ("mon", "osd", "rgw", "run"):
        (home / part).mkdir(parents=True)
    (home / "ceph.conf").write_text(_configuration(home, fsid, monitor_port, gateway_port))
    programs = _Programs(home)
    try:
        _monitor(programs, home, fsid, monitor_port)
        _storage_daemon(programs)
        url = _gateway(programs, gateway_port)
    except BaseException:
        for pid in programs.pids:
            _kill(pid)
        raise
    return url, programs.pids


class _Programs:
    """Ceph's programs with this cluster's configuration."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self.pids: list[int] = []

    def run(self, program: str, *arguments: str) -> str:
        command = [program, "--conf", str(self._home / "ceph.conf"), *arguments]
        done = subprocess.run(
            command, cwd=self._home, capture_output=True, text=True, timeout=_START_SECONDS, check=False
        )
        assert done.returncode == 0, f"{program}: {done.stderr[-2000:]}"
        return done.stdout

    def start(self, program: str, *arguments: str) -> None:
        with (self._home / f"{program}.out").open("w") as out:
            process = subprocess.Popen(
                [program, "--conf", str(self._home / "ceph.conf"), *arguments, "-f"],
                cwd=self._home,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        self.pids.append(process.pid)
        process.returncode = 0  # it outlives this object, maybe this process: whoever leaves last ends it


def _monitor(programs: _Programs, home: Path, fsid: str, port: int) -> None:
    keyring = str(home / "keyring")
    everything = [part for service in ("mon", "osd", "mgr") for part in ("--cap", service, "allow *")]
    for name in ("mon.", "client.admin", "client.rgw", "osd.0"):
        create = [] if (home / "keyring").exists() else ["--create-keyring"]
        programs.run("ceph-authtool", keyring, *create, "--gen-key", "-n", name, *everything)
    address = f"[v2:127.0.0.1:{port}]"
    programs.run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", address, str(home / "monmap"))
    programs.run("ceph-mon", "--mkfs", "-i", "a", "--monmap", str(home / "monmap"), "--keyring", keyring)
    programs.start("ceph-mon", "-i", "a")


def _storage_daemon(programs: _Programs) -> None:
    osd = str(uuid.uuid4())
    programs.run("ceph", "osd", "new", osd)
    programs.run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
    programs.start("ceph-osd", "-i", "0")
    _until(lambda: "1 up" in programs.run("ceph", "osd", "stat"))


def _gateway(programs: _Programs, port: int) -> str:
    programs.start("radosgw", "-n", "client.rgw")
    url = f"http://127.0.0.1:{port}"
    _until(lambda: _answers(url))
    user = ("--uid=test", "--display-name=test", f"--access-key={ACCESS_KEY}", f"--secret-key={SECRET_KEY}")
    programs.run("radosgw-admin", "-n", "client.rgw", "user", "create", *user)
    _create_bucket(url)
    return url


def client(url: str) -> Any:
    """botocore's own client, to look at the store from another side."""
    return botocore.session.get_session().create_client(
        "s3",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        config=Config(s3={"addressing_style": "path"}),
    )


def _create_bucket(url: str) -> None:
    s3 = client(url)
    s3.create_bucket(Bucket=BUCKET)
    s3.close()


def _until(observed: Callable[[], bool]) -> None:
    end = time.monotonic() + _START_SECONDS
    while not observed():
        assert time.monotonic() < end, "Ceph did not start"
        time.sleep(0.1)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return int(answer.status) == 200
    except (urllib.error.URLError, OSError):
        return False


def _configuration(home: Path, fsid: str, monitor_port: int, gateway_port: int) -> str:
    return f"""\
[global]
fsid = {fsid}
mon initial members = a
mon host = [v2:127.0.0.1:{monitor_port}]
public network = 127.0.0.0/8
auth allow insecure global id reclaim = true
keyring = {home}/keyring
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pgp num = 1
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
run dir = {home}/run
admin socket = {home}/run/$cluster-$name.asok
pid file = {home}/run/$name.pid
log file = {home}/$name.log
log to stderr = false
mon cluster log file = {home}/cluster.log

[mon.a]
mon data = {home}/mon
mon addr = 127.0.0.1
ms bind ipv4 = true

[osd.0]
osd data = {home}/osd
osd objectstore = memstore
memstore device bytes = 1073741824
osd memory target = 939524096

[client.rgw]
rgw frontends = beast endpoint=127.0.0.1:{gateway_port}
rgw thread pool size = 32
rgw data = {home}/rgw
rgw dns name = {DOMAIN}
rgw enable usage log = false
rgw dynamic resharding = false
"""
