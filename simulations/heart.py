"""Fed-Heart-Disease: the UCI Heart Disease data of four hospitals, prepared as FLamby does.

Three columns that most hospitals lack are dropped, then rows with a missing value; chest pain and resting ECG become
indicators, the first value of each left out; disease is any value over 0. Each hospital's rows are split two to one,
stratified by disease where there are enough of both.

References: du Terrail et al., "FLamby: Datasets and Benchmarks for Cross-Silo Federated Learning in Realistic
Healthcare Settings", NeurIPS 2022 (Datasets and Benchmarks); Janosi, Steinbrunn, Pfisterer and Detrano, "Heart
Disease", UCI Machine Learning Repository, 1988, doi:10.24432/C52P4X (CC BY 4.0).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from sklearn.model_selection import train_test_split

from client.dataset import CaseSet
from common.errors import DataError
from common.files import read_text
from simulations.members import Hospital

HOSPITALS = ("cleveland", "hungarian", "switzerland", "va")
COLUMNS = ("age", "sex", "cp", "trestbps", "chol", "fbs", "restecg", "thalach", "exang", "oldpeak")
"""Those of the original file's first ten that stay; the next three are dropped, the last is the disease."""
INDICATORS = {"cp": (2, 3, 4), "restecg": (1, 2)}
FEATURES = (
    *(column for column in COLUMNS if column not in INDICATORS),
    *(f"{column}={value}" for column, values in INDICATORS.items() for value in values),
)
"""The 13 features, as a job names them, in FLamby's order: with the same seed a model starts from the same weights."""
DISEASE = "disease"
SPLIT_SEED, TRAIN_SHARE = 43, 0.66


def hospitals(folder: Path) -> dict[str, Hospital]:
    """Return the four hospitals, with splits "train" and "test"; a case's label is `DISEASE` or "".

    Raises DataError when one of the four original files is not in `folder`.
    """
    return {name: _hospital(name, *read(folder / f"processed.{name}.data")) for name in HOSPITALS}


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the features, (N, 13) float32, and disease, (N,) bool, of one original file. Raises DataError."""
    try:
        lines = read_text(path).split()
    except OSError as error:
        raise DataError(f"{path}: the hospital's file can't be read: {error.strerror}") from error
    try:
        rows = [[*cells[:10], cells[13]] for cells in (line.split(",") for line in lines)]
        whole = np.stack([[float(cell) for cell in row] for row in rows if "?" not in row])
    except (IndexError, ValueError) as error:
        raise DataError(
            f"{path}: this is not the original file: it has rows of 14 numbers or question marks"
        ) from error
    values = dict(zip(COLUMNS, whole.T, strict=False))
    columns = [_feature(values, *feature.split("=")) for feature in FEATURES]
    return np.stack(columns, axis=1).astype(np.float32), whole[:, -1] > 0


def _feature(values: dict[str, np.ndarray], column: str, wanted: str | None = None) -> np.ndarray:
    return values[column] if wanted is None else values[column] == int(wanted)


def _hospital(name: str, features: np.ndarray, disease: np.ndarray) -> Hospital:
    counts = np.bincount(disease.astype(int), minlength=2)
    train, test = train_test_split(
        np.arange(len(disease)),
        train_size=TRAIN_SHARE,
        test_size=1 - TRAIN_SHARE,
        random_state=SPLIT_SEED,
        stratify=disease if counts.min() > 2 else None,  # Switzerland has one healthy patient
    )
    splits = {"train": np.asarray(train), "test": np.asarray(test)}
    return Hospital(name, {split: _cases(features[rows], disease[rows]) for split, rows in splits.items()})


def _cases(features: np.ndarray, disease: np.ndarray) -> CaseSet:
    return CaseSet(features, tuple(DISEASE if ill else "" for ill in disease), np.arange(len(disease)))
