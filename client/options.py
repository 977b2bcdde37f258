"""The options that several of a site's commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

KitOption = Annotated[
    Path | None, typer.Option("--kit", help="The site's kit folder (default: $WARDROUND_KIT, else the current folder).")
]
KitArgument = Annotated[
    Path | None, typer.Argument(help="The site's kit folder (default: $WARDROUND_KIT, else the current folder).")
]
DeidentifyOption = Annotated[
    bool, typer.Option("--deidentify", help="Make a de-identified copy of each DICOM file in the kit, and read that.")
]
CleanPixelsOption = Annotated[
    bool, typer.Option("--clean-pixels", help="With --deidentify: blank text that is found in the pixels.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
