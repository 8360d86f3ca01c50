"""A real S3 server on loopback: Ceph's gateway (Debian packages radosgw, ceph-mon, ceph-osd, ceph-common) over one OSD in memory.

`with ObjectStore(folder) as store:` gives `store.endpoint`, and in `store.environment` the AWS variables that reach it.
"""

from __future__ import annotations

import ctypes
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import boto3

PROGRAMS = ("ceph-mon", "ceph-osd", "radosgw", "radosgw-admin", "ceph", "ceph-authtool", "monmaptool")
ACCESS, SECRET, BUCKET = "benchmark", "benchmark-secret", "benchmark"
PR_SET_PDEATHSIG = 1
CONFIG = """[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{mon}]
public addr = 127.0.0.1
cluster addr = 127.0.0.1
ms bind ipv6 = false
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
keyring = {folder}/$name.keyring
run dir = {folder}
admin socket =
log file = {folder}/$name.log
log to stderr = false
mon data = {folder}/mon
osd data = {folder}/osd
osd objectstore = memstore
memstore device bytes = 4294967296
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd crush chooseleaf type = 0
mon allow pool size one = true
mon warn on pool no redundancy = false
mon max pg per osd = 1000
debug ms = 0/0
debug rgw = 0/0
debug osd = 0/0
rgw thread pool size = 32
"""


def missing() -> list[str]:
    """Programs that it needs and that are not installed."""
    return [program for program in PROGRAMS if shutil.which(program) is None]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class ObjectStore:
    """Runs while the block does; ended by the processes' own ids, or by the system when their caller's thread is gone."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.environment = {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS,
            "AWS_SECRET_ACCESS_KEY": SECRET,
        }
        self._running: list[subprocess.Popen[bytes]] = []

    def _run(self, *command: object) -> str:
        words = [*map(str, command), "-c", str(self.folder / "ceph.conf")]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60)
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)}: {done.stderr[-2000:]}")
        return done.stdout

    def _start(self, *command: object) -> None:
        words = [*map(str, command), "-f", "-c", str(self.folder / "ceph.conf")]
        process = subprocess.Popen(
            words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=_die_with_caller
        )
        self._running.append(process)

    def __enter__(self) -> ObjectStore:
        folder, fsid, mon = self.folder, uuid.uuid4(), free_port()
        folder.mkdir(parents=True)
        (folder / "mon").mkdir()
        (folder / "osd").mkdir()
        (folder / "ceph.conf").write_text(CONFIG.format(fsid=fsid, mon=mon, folder=folder))
        admin, monitor = folder / "client.admin.keyring", folder / "mon.keyring"
        caps = ["--cap", "mon", "allow *", "--cap", "osd", "allow *", "--cap", "mgr", "allow *"]
        self._run("ceph-authtool", "--create-keyring", monitor, "--gen-key", "-n", "mon.", "--cap", "mon", "allow *")
        self._run("ceph-authtool", "--create-keyring", admin, "--gen-key", "-n", "client.admin", *caps)
        self._run("ceph-authtool", monitor, "--import-keyring", admin)
        self._run("monmaptool", "--create", "--addv", "a", f"[v2:127.0.0.1:{mon}]", "--fsid", fsid, folder / "monmap")
        self._run("ceph-mon", "--mkfs", "-i", "a", "--monmap", folder / "monmap", "--keyring", monitor)
        try:
            self._start("ceph-mon", "-i", "a")
            disk = uuid.uuid4()
            osd = self._run("ceph", "--connect-timeout", "30", "osd", "new", disk).strip()
            allow = ("mon", "allow profile osd", "osd", "allow *", "mgr", "allow profile osd")
            self._run("ceph", "auth", "get-or-create", f"osd.{osd}", *allow, "-o", folder / f"osd.{osd}.keyring")
            self._run("ceph-osd", "-i", osd, "--mkfs", "--osd-uuid", disk)
            self._start("ceph-osd", "-i", osd)
            gateway = ("mon", "allow rw", "osd", "allow rwx")
            self._run("ceph", "auth", "get-or-create", "client.rgw", *gateway, "-o", folder / "client.rgw.keyring")
            self._start("radosgw", "-n", "client.rgw", "--rgw-frontends", f"beast endpoint=127.0.0.1:{self.port}")
            user = ("--uid", "benchmark", "--display-name", "benchmark", "--access-key", ACCESS, "--secret-key", SECRET)
            self._run("radosgw-admin", "user", "create", *user)
            self._ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def client(self) -> Any:
        """Of boto3, for this store alone."""
        keys = {"aws_access_key_id": ACCESS, "aws_secret_access_key": SECRET}
        return boto3.client("s3", endpoint_url=self.endpoint, region_name="us-east-1", **keys)

    def _ready(self) -> None:
        client = self.client()
        for attempt in range(60):
            try:
                client.create_bucket(Bucket=BUCKET)
                return
            except Exception:
                if attempt == 59:
                    raise
                time.sleep(0.5)

    def __exit__(self, *exception: object) -> None:
        for process in reversed(self._running):
            process.kill()
            process.wait()


def _die_with_caller() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
