"""A service's log on standard error: aligned and in colour on a terminal, one whole line an event anywhere else."""

from __future__ import annotations

import logging
import sys


def log_to_stderr() -> None:
    """Show Ward Round's log from INFO up, and other libraries' from WARNING up."""
    handler: logging.Handler = logging.StreamHandler()
    # A file or a journal has no width: a line folded to 80 columns could not be searched.
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s"))
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.logging import RichHandler

        handler = RichHandler(console=Console(stderr=True), show_path=False)
        handler.setFormatter(logging.Formatter("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("wardround").setLevel(logging.INFO)
