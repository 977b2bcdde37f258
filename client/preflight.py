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
ADMISSION_REMEDY = (
    "if the coordinator has not admitted this site, send it the request; if it revoked this site's key, make a new "
    "one (wardround site enrol --new-key)"
)
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - looked at, never written


def preflight(kit: Kit) -> list[Finding]:
    """Look at everything a site needs and return a line for each; nothing is changed.

    Order: the kit's certificates and keys, the coordinator and the clock, the policy and the data, the machine.
    """
    network = "check the network and the firewall for this address and port"
    coordinator = _tried("coordinator", lambda: _coordinator(kit), network)
    return [
        *check_kit(kit),
        coordinator,
        *(_admission_and_clock(kit) if coordinator.ok else _not_asked()),
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


def _admission_and_clock(kit: Kit) -> list[Finding]:
    """Two lines from one call: the coordinator says nothing of its clock, but refuses a wrong timestamp."""
    clock = _clock()
    try:
        node = check_admission(kit)
    except WardroundError as error:
        if "clock" in str(error):
            return [_not_asked()[0], Finding("clock", False, f"{clock}: {error}", "synchronise it (NTP)")]
        return [
            Finding("admission", False, str(error), ADMISSION_REMEDY),
            Finding("clock", True, f"{clock}; not compared, the coordinator did not admit us"),
        ]
    return [
        Finding("admission", True, f"{kit.address} knows this site as node {node}"),
        Finding("clock", True, f"{clock}, within a minute of the coordinator"),
    ]


def _not_asked() -> list[Finding]:
    """The same two lines where the question could not be put: what is in the way has a line of its own."""
    return [
        Finding("admission", False, "not known yet", "mend what is wrong with the link first"),
        Finding("clock", True, f"{_clock()}; not compared with the coordinator's"),
    ]


def _clock() -> str:
    return time.strftime("this machine says %Y-%m-%d %H:%M:%S UTC", time.gmtime())


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
