"""Replaces itself with a command that ends when its parent ends, even if the parent is killed and can't say so.

    python -m simulations.lifeline PARENT_PID COMMAND [ARGUMENT ...]

On Linux the kernel sends SIGTERM to the command when the thread that started it ends (prctl(2), PR_SET_PDEATHSIG);
elsewhere the command just runs, and the parent's own care has to do.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def tie_to_parent(parent: int) -> None:
    """Ask for SIGTERM at the parent's end; raise SystemExit if it, process `parent`, has ended already."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it ended before the call above
        raise SystemExit(1)


if __name__ == "__main__":
    tie_to_parent(int(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606 - the command is its caller's own; exec keeps the tie
