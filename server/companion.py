"""The dashboard beside the coordinator: a process of its own, so that pages never slow a round down."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from types import TracebackType

from common.kit import Kit

RESTART_SECONDS, GRACE_SECONDS = 60.0, 10.0
log = logging.getLogger("wardround.coordinator")


class Companion:
    """Runs `wardround dashboard` for a kit at `listen` as long as the `with` block; `keep` starts it anew if it ended.

    The dashboard reads a pipe that the kernel closes when this process ends, however that ends: none is left behind.
    """

    def __init__(self, kit: Kit, listen: str) -> None:
        self._kit, self._listen = kit, listen
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0

    def __enter__(self) -> Companion:
        self._start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._process is None or self._process.stdin is None:
            return
        self._process.stdin.close()
        try:
            self._process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def keep(self) -> None:
        """Start the dashboard again if it has ended, at most once in `RESTART_SECONDS`."""
        if self._process is None or self._process.poll() is None:
            return
        if time.monotonic() - self._started > RESTART_SECONDS:
            log.warning("the dashboard had ended with status %s: it is started again", self._process.returncode)
            self._start()

    def _start(self) -> None:
        command = [sys.executable, "-c", "from common.cli import main; main()", "dashboard", str(self._kit.folder)]
        options = ["--listen", self._listen, "--with-parent"]
        self._started = time.monotonic()
        self._process = subprocess.Popen([*command, *options], stdin=subprocess.PIPE)
