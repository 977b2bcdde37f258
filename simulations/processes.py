"""The processes of a federation on one machine: started together, watched, and none left behind.

Each process leads a process group of its own, so that Ctrl-C reaches only the parent, which then ends them in order;
`simulations.lifeline` ties each to the parent for the case that the parent can't.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType

from common.errors import RunError

GRACE_SECONDS = 10.0
POLL_SECONDS = 0.05
LOG_LINES = 6


def wardround_command() -> list[str]:
    """Return the command line that runs this installation's `wardround`."""
    script = Path(sysconfig.get_path("scripts")) / "wardround"
    return [str(script)] if script.exists() else [sys.executable, "-c", "from common.cli import main; main()"]


@dataclass(frozen=True)
class Member:
    """A process: its name for people, and where its standard output and error go."""

    name: str
    process: subprocess.Popen[bytes]
    output: Path
    log: Path

    @property
    def ended(self) -> bool:
        """Whether it has ended. It stays a zombie until the crew closes, so that its group's id stays its own."""
        if self.process.returncode is not None:
            return True
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self.process.pid, flags) is not None

    def last_lines(self) -> str:
        """The end of what it wrote, as one line."""
        text = "\n".join(path.read_text(errors="replace") for path in dict.fromkeys((self.output, self.log)))
        lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
        return " | ".join(lines[-LOG_LINES:]) or "it wrote nothing"


class Crew:
    """Processes that live no longer than this context manager. For one thread: the kernel's tie is to it (prctl(2))."""

    def __init__(self, logs: Path, environment: Mapping[str, str]) -> None:
        self._logs = logs
        self._environment = {**os.environ, **environment}
        self._members: list[Member] = []
        logs.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Crew:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self, name: str, command: Sequence[str]) -> Member:
        """Start a process that is to stay until the crew closes; both its outputs go to its log."""
        log = self._logs / f"{name.replace(' ', '-')}.log"
        member = self._start(name, command, log, log)
        self._members.append(member)
        return member

    def run_all(
        self,
        commands: Mapping[str, Sequence[str]],
        *,
        at_once: int,
        on_end: Callable[[str, str], None] | None = None,
    ) -> dict[str, str]:
        """Run processes to their ends, `at_once` of them at a time; return what each wrote on standard output.

        `on_end` is called with a process' name and output as each ends. Raises RunError, with the end of its log, for
        the first that fails, and for a resident that stopped meanwhile.
        """
        waiting, running, outputs = list(commands.items()), list[Member](), dict[str, str]()
        while waiting or running:
            while waiting and len(running) < at_once:
                name, command = waiting.pop(0)
                stem = self._logs / name.replace(" ", "-")
                running.append(self._start(name, command, stem.with_suffix(".out"), stem.with_suffix(".log")))
                self._members.append(running[-1])
            self.check(besides=running)
            for member in [member for member in running if member.ended]:
                running.remove(member)
                outputs[member.name] = self._finish(member)
                if on_end:
                    on_end(member.name, outputs[member.name])
            time.sleep(POLL_SECONDS)
        return outputs

    def check(self, besides: Sequence[Member] = ()) -> None:
        """Raise RunError, with the end of its log, if a process that is to stay has ended."""
        for member in self._members:
            if member not in besides and member.ended:
                raise RunError(f"{member.name} stopped (exit code {member.process.wait()}): {member.last_lines()}")

    def close(self) -> None:
        """End every process: SIGTERM in the reverse order of starting, and SIGKILL to those that stay."""
        members, self._members = self._members, []
        with _deaf_to_ctrl_c():
            for member in reversed(members):
                _signal_group(member, signal.SIGTERM)
            end = time.monotonic() + GRACE_SECONDS
            while time.monotonic() < end and not all(member.ended for member in members):
                time.sleep(POLL_SECONDS)
            for member in members:
                _signal_group(member, signal.SIGKILL)  # also what it may have left in its group
                member.process.wait()

    def _start(self, name: str, command: Sequence[str], output: Path, log: Path) -> Member:
        lifeline = [sys.executable, "-m", "simulations.lifeline", str(os.getpid())]
        with output.open("ab") as out, log.open("ab") as errors:
            process = subprocess.Popen(
                [*lifeline, *command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=errors,
                env=self._environment,
                start_new_session=True,
            )
        return Member(name, process, output, log)

    def _finish(self, member: Member) -> str:
        self._members.remove(member)
        if code := member.process.wait():
            raise RunError(f"{member.name} failed (exit code {code}): {member.last_lines()}")
        return member.output.read_text(encoding="utf-8")


def _signal_group(member: Member, number: signal.Signals) -> None:
    # The leader is not reaped yet, so the group is ours even if the leader has ended.
    if member.process.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(member.process.pid, number)


@contextlib.contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """Let a second, impatient Ctrl-C not stop the stopping."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, former)


@contextlib.contextmanager
def ending_on_signals() -> Iterator[None]:
    """Make SIGTERM and SIGHUP end the block as Ctrl-C does, so that every context in it closes."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    numbers = (signal.SIGTERM, signal.SIGHUP)
    former = [signal.signal(number, interrupt) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, former, strict=True):
            signal.signal(number, handler)
