"""Cyclic weight transfer: the model goes from one site to the next, one site a round, in the job's order or,
with `shuffle`, in a new one each cycle (`common/selection.py`).

References: Chang et al., "Distributed deep learning networks among institutions for medical imaging", JAMIA 2018.
"""

from __future__ import annotations

from typing import ClassVar

from server.strategies.mean import MeanStrategy


class Cyclic(MeanStrategy):
    """The mean of one: the model of the site whose turn it is."""

    name: ClassVar[str] = "cyclic"
    central: ClassVar[bool] = False  # a round's update is one site's: nothing hides it among others
