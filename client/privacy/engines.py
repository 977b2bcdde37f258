"""The engines by name. To add one: a function in a file of its own, and a line here."""

from __future__ import annotations

from client.privacy.bookkeeping import bookkeeping
from client.privacy.clipping import Engine, plain
from client.privacy.persample import ghost, hooks, vmap
from common.errors import JobError

ENGINES: dict[str, Engine] = {
    "plain": plain,
    "bookkeeping": bookkeeping,
    "vmap": vmap,
    "hooks": hooks,
    "ghost": ghost,
}
GRADIENT_AN_IMAGE = frozenset({"vmap", "hooks"})
"""Those that hold a gradient of the whole network for each image at once."""
ONE_IMAGE = frozenset({"ghost"})
"""Those that take only units of one image."""


def named_engine(name: str, images_a_unit: int = 1) -> str:
    """Return `name` if it is an engine's that takes units of so many images. Raises JobError."""
    if name not in ENGINES:
        raise JobError(f'"privacy.engine": unknown engine "{name}": there are auto, {", ".join(ENGINES)}')
    if name in ONE_IMAGE and images_a_unit > 1:
        raise JobError(f'"privacy.engine": {name} takes one image and one view of it a unit: use auto')
    return name
