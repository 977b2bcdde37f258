"""A guard against running one half of the code from one place and the other half from another.

Flower's stock runtime unpacks the app's bundle beside an installed package; modules that are imported already win
over both without a word. Half an old version under half a new one must not train on patients.
"""

from __future__ import annotations

from pathlib import Path

from common.errors import UsageError


def refuse_mixed_install(module_file: str) -> None:
    """Check that the calling module (its `__file__`) lies in the same tree as `common`. Raises UsageError if not."""
    mine, theirs = Path(__file__).resolve().parent.parent, Path(module_file).resolve().parent.parent
    if mine != theirs:
        raise UsageError(
            f"two installs of Ward Round are mixed: common from {mine}, {Path(module_file).parent.name} from {theirs}; "
            "uninstall one of them"
        )
