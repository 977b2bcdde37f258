"""Preflight of a site: what stands between this machine and taking part in a federation, line by line."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from certs.checks import Finding, check_kit
from client.catalog import Catalog
from client.node import check_admission, probe
from client.policy import FILE_NAME, read_policy
from common.errors import WardroundError
from common.kit import Kit

MIN_DISK_BYTES = 2 * 1024**3
MIN_SHARED_MEMORY_BYTES = 64 * 1024**2
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - looked at, never written


def preflight(kit: Kit) -> list[Finding]:
    """Look at everything a site needs and return a line for each; nothing is changed.

    Order: the kit's certificates and keys, the coordinator and the clock, the policy and the data, the machine.
    """
    return [
        *check_kit(kit),
        _tried(
            "coordinator", lambda: _coordinator(kit), "check the network and the firewall for this address and port"
        ),
        _tried(
            "admission", lambda: _admission(kit), "send the site's request to the coordinator (wardround site enrol)"
        ),
        _clock(kit),
        _tried("policy", lambda: _policy(kit), f"write {kit.folder / FILE_NAME}"),
        _tried("data", lambda: _data(kit), "run `wardround site import`"),
        _disk(kit.folder),
        _shared_memory(),
        _gpu(),
    ]


def _tried(what: str, look: Callable[[], Finding], remedy: str) -> Finding:
    try:
        return look()
    except WardroundError as error:
        return Finding(what, False, str(error), remedy)


def _coordinator(kit: Kit) -> Finding:
    report = probe(kit)
    detail = f"{kit.address} answers with {report.tls}, {report.alpn or 'no ALPN'}, certificate until "
    return Finding("coordinator", report.alpn == "h2", detail + report.server_certificate_ends)


def _admission(kit: Kit) -> Finding:
    return Finding("admission", True, f"{kit.address} knows this site as node {check_admission(kit)}")


def _clock(kit: Kit) -> Finding:
    """The coordinator says nothing of its clock; its certificate and its refusal of a wrong timestamp do."""
    now = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
    try:
        check_admission(kit)
    except WardroundError as error:
        if "clock" in str(error):
            return Finding("clock", False, f"this machine says {now} UTC: {error}", "synchronise it (NTP)")
        return Finding("clock", True, f"this machine says {now} UTC; not compared, the coordinator did not admit us")
    return Finding("clock", True, f"this machine says {now} UTC, within a minute of the coordinator")


def _policy(kit: Kit) -> Finding:
    policy = read_policy(kit.folder)
    if not policy.collections:
        remedy = f"name collections in {kit.folder / FILE_NAME}"
        return Finding("policy", False, "allows no collection: every job is refused", remedy)
    privacy = (
        f"epsilon at most {policy.max_epsilon_per_run:g} a run" if policy.require_privacy else "privacy not required"
    )
    return Finding("policy", True, f"allows {', '.join(policy.collections)}; {privacy}")


def _data(kit: Kit) -> Finding:
    catalog = Catalog(kit.folder / "catalog.sqlite")
    names = catalog.collections()
    if not names:
        return Finding("data", False, "nothing is indexed", "run `wardround site import`")
    counts = ", ".join(f"{name} ({len(catalog.cases(name, 'train'))} training cases)" for name in names)
    return Finding("data", True, counts)


def _disk(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free
    detail = f"{free / 1024**3:.1f} GiB free for cache and logs at {folder}"
    return Finding("disk", free >= MIN_DISK_BYTES, detail, "" if free >= MIN_DISK_BYTES else "free 2 GiB or more")


def _shared_memory() -> Finding:
    if not SHARED_MEMORY.is_dir():
        return Finding("shared memory", True, "none on this system; none is needed")
    free = shutil.disk_usage(SHARED_MEMORY).free
    remedy = "" if free >= MIN_SHARED_MEMORY_BYTES else "enlarge it (in a container: --shm-size=1g)"
    return Finding("shared memory", not remedy, f"{free / 1024**2:.0f} MiB free", remedy)


def _gpu() -> Finding:
    import torch

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        name = torch.cuda.get_device_name()
        return Finding("GPU", True, f"{name}, {free / 1024**3:.1f} of {total / 1024**3:.1f} GiB free")
    return Finding(
        "GPU", True, f"none that torch {torch.__version__} can use: training runs on {os.cpu_count()} CPU cores"
    )
