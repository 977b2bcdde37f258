"""What privacy costs in accuracy: a study in cells, each run once, kept as it is done, and never run again.

A cell is one training: which data, which way to train, which epsilon, which seed. Its result is a line of a CSV file
that is written and synced before the next cell starts, so a study that is stopped goes on where it was.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from common.errors import DataError
from common.files import write_atomically


@dataclass(frozen=True, order=True)
class Cell:
    """One training of a study. `epsilon` is what the job asks for, infinite without privacy."""

    data: str
    arm: str
    epsilon: float
    seed: int

    @property
    def private(self) -> bool:
        """Whether it trains with differential privacy."""
        return math.isfinite(self.epsilon)

    def __str__(self) -> str:
        """Say which cell it is, for people."""
        level = f"epsilon {self.epsilon:g}" if self.private else "no privacy"
        return f"{self.data}, {self.arm}, {level}, seed {self.seed}"


@dataclass(frozen=True)
class Result:
    """What a cell came to.

    AUC on the test set with its 95 % interval over test images; the epsilon accounted at the job's delta (infinite
    without privacy; of several sites the largest); wall-clock seconds of one thread.
    """

    data: str
    arm: str
    epsilon: float
    seed: int
    auc: float
    auc_low: float
    auc_high: float
    spent: float
    seconds: float

    @property
    def cell(self) -> Cell:
        """The cell that it is the result of."""
        return Cell(self.data, self.arm, self.epsilon, self.seed)


def results_in(path: Path) -> list[Result]:
    """Return the results that a file holds, none when there is no file. Raises DataError when it is not such a file."""
    if not path.exists():
        return []
    names = [field.name for field in fields(Result)]
    rows = list(csv.reader(path.read_text(encoding="utf-8").splitlines()))
    if not rows or rows[0] != names:
        raise DataError(f"{path}: its heading is not {','.join(names)}: name another folder for this study's results")
    try:
        return [_result(row) for row in rows[1:]]
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: not a result in it: {error}: take the line out, and its cell is run again") from error


def run_missing(
    cells: Iterable[Cell], path: Path, run: Callable[[Cell], Result], tell: Callable[[str], None]
) -> list[Result]:
    """Run those of `cells` that the file at `path` has no result of; return the results of them all, in their order.

    `tell` is given a line on each as it is done. Raises DataError as `results_in`, and what `run` raises.
    """
    done = {result.cell: result for result in results_in(path)}
    wanted = list(cells)
    for number, cell in enumerate(wanted, start=1):
        if cell not in done:
            done[cell] = run(cell)
            _keep(path, done.values())
            tell(f"{number}/{len(wanted)} {cell}: AUC {done[cell].auc:.4f}, {done[cell].seconds:.0f} s")
    return [done[cell] for cell in wanted]


def _keep(path: Path, results: Iterable[Result]) -> None:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow([field.name for field in fields(Result)])
    table.writerows(asdict(result).values() for result in results)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.getvalue().encode())


def _result(row: Sequence[str]) -> Result:
    data, arm, epsilon, seed, *numbers = row
    auc, low, high, spent, seconds = map(float, numbers)
    return Result(data, arm, float(epsilon), int(seed), auc, low, high, spent, seconds)
