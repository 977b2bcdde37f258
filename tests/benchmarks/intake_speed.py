"""Studies a second and peak memory of an import, and an epoch from the cache, beside MONAI's own readers.

Run by hand: python tests/benchmarks/intake_speed.py --out FOLDER [--files 10000] [--size 128] [--epoch 1000]

Phantom radiographs (DICOM, 12 bits, one a patient) are written to FOLDER/images and kept there. Then, each
in a process of its own, one after the other in one run, one thread for torch:

    import 1, import 2     `import_folder` of all files by one process, and by two: identified, hashed, decoded, split,
                           checked, committed, with the quality report
    monai reader           MONAI's LoadImage with PydicomReader over the same files: decoded, nothing else
    epoch ...              all images of `--epoch` of the files once, at 64 x 64, as a training reads them: from Ward
                           Round's cache; by LoadImage and Resize each time; from MONAI's PersistentDataset and
                           CacheDataset, filled before

CPU seconds, of all of an arm's processes, are what to read on a machine that does other work as well.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

SIDE = 64
ARMS = ("import 1", "import 2", "monai reader", "epoch: ours, cached", "epoch: monai, decoding each time",
        "epoch: monai, PersistentDataset", "epoch: monai, CacheDataset")  # fmt: skip


def write_images(folder: Path, files: int, size: int) -> None:
    """Write so many radiographs of different patients, unless they are there."""
    from simulations.phantoms import draw_anatomy, draw_pose, draw_radiograph
    from simulations.radiographs import Exposure, Scanner, detect, radiograph, save

    if folder.is_dir() and len(list(folder.rglob("*.dcm"))) == files:
        return
    shutil.rmtree(folder, ignore_errors=True)
    random, scanner = np.random.default_rng(0), Scanner("Bench")
    people = [draw_radiograph(draw_anatomy(random), (), draw_pose(random), size) for _ in range(64)]
    for number in range(files):
        place = folder / f"{number // 500:03d}"
        place.mkdir(parents=True, exist_ok=True)
        pixels = detect(people[number % 64], scanner, random)  # noise and exposure of its own
        save(radiograph(pixels, scanner, Exposure(f"P{number:06d}"), origin="bench"), place / f"{number:06d}.dcm")


def paths(folder: Path, most: int | None = None) -> list[Path]:
    return sorted((folder / "images").rglob("*.dcm"))[:most]


def imported(folder: Path, workers: int) -> tuple[int, object]:
    from client.intake.importer import ImportOptions, import_folder

    kit = folder / f"kit-{workers}"
    shutil.rmtree(kit, ignore_errors=True)
    kit.mkdir()
    report = import_folder(kit, "bench", folder / "images", options=ImportOptions(workers=workers))
    return report.indexed, {"page_kB": round(Path(report.page).stat().st_size / 1000)}


def read_by_monai(files: list[Path]) -> int:
    from monai.transforms import LoadImage

    load = LoadImage(reader="PydicomReader", image_only=True)
    return sum(load(path).ndim >= 2 for path in files)


def epoch_of_ours(folder: Path, most: int) -> tuple[int, float, float]:
    """Read what a training reads: the first call decodes and fills the cache, and is not counted."""
    from client.catalog import CATALOG_FILE, Catalog
    from client.dataset import open_cases
    from client.intake.importer import ImportOptions, import_folder
    from common.job import DataSection

    few = folder / "few"
    shutil.rmtree(few, ignore_errors=True)
    few.mkdir()
    for path in paths(folder, most):
        os.link(path, few / path.name)
    kit = folder / "kit-few"
    shutil.rmtree(kit, ignore_errors=True)
    kit.mkdir()
    labels = folder / "few.csv"
    labels.write_text("file,label,split\n" + "".join(f"{path.name},a,train\n" for path in sorted(few.iterdir())))
    import_folder(kit, "few", few, labels, options=ImportOptions())
    catalog, data = Catalog(kit / CATALOG_FILE), DataSection(collection="few", size=(SIDE, SIDE))
    open_cases(catalog, data, "train", kit / "cache")

    def epoch() -> int:
        images = open_cases(catalog, data, "train", kit / "cache").images
        batches = (np.array(images[at : at + 32]) for at in range(0, len(images), 32))
        return sum(len(batch) for batch in batches if np.isfinite(batch.sum()))

    return timed(epoch)


def epoch_of_monai(folder: Path, most: int, kind: str) -> tuple[int, float, float]:
    import torch
    from monai.data import CacheDataset, Dataset, PersistentDataset
    from monai.transforms import Compose, EnsureChannelFirst, LoadImage, Resize, ScaleIntensity

    steps = Compose([LoadImage(reader="PydicomReader", image_only=True), EnsureChannelFirst(), ScaleIntensity(),
                     Resize((SIDE, SIDE))])  # fmt: skip
    files = [str(path) for path in paths(folder, most)]
    if kind == "PersistentDataset":
        cache = folder / "persistent"
        shutil.rmtree(cache, ignore_errors=True)
        data = PersistentDataset(files, steps, cache_dir=cache)
        for item in data:
            del item
    elif kind == "CacheDataset":
        data = CacheDataset(files, steps, progress=False, num_workers=1)
    else:
        data = Dataset(files, steps)
    torch.set_num_threads(1)
    return timed(lambda: sum(float(item.sum()) >= -1 for item in data))


def timed(work) -> tuple[int, float, float]:
    """What `work` returns, with its seconds on the clock and of the CPU (children too)."""
    started, spent = time.perf_counter(), cpu()
    done = work()
    return done, time.perf_counter() - started, cpu() - spent


def cpu() -> float:
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def arm(name: str, folder: Path, epoch: int) -> dict[str, object]:
    more: object = {}
    if name.startswith("import"):
        workers = int(name.split()[1])
        from client.intake import importer  # noqa: F401 - loading the program is not counted

        (done, more), wall, spent = timed(lambda: imported(folder, workers))
    elif name == "monai reader":
        import monai.transforms  # noqa: F401

        files = paths(folder)
        done, wall, spent = timed(lambda: read_by_monai(files))
    elif "ours" in name:
        done, wall, spent = epoch_of_ours(folder, epoch)
    else:
        kind = "" if "decoding" in name else name.split(", ")[1]
        done, wall, spent = epoch_of_monai(folder, epoch, kind)
    own, children = (
        resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return {"arm": name, "files": done, "seconds": wall, "cpu": spent, "peak_MB": round(own),
            "largest_child_MB": round(children), **(more if isinstance(more, dict) else {})}  # fmt: skip


def main() -> None:
    """Run every arm in a process of its own and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--epoch", type=int, default=1000)
    parser.add_argument("--arm")
    given = parser.parse_args()
    if given.arm:
        print(json.dumps(arm(given.arm, given.out, given.epoch)))
        return
    write_images(given.out / "images", given.files, given.size)
    print("| | files | files a second | files a CPU second | peak MB (largest child) |\n|---|---|---|---|---|")
    for name in ARMS:
        command = [sys.executable, __file__, *sys.argv[1:], "--arm", name]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if ended.returncode:
            print(f"| {name} | failed: {ended.stderr.strip().splitlines()[-1]} |")
            continue
        found = json.loads(ended.stdout.strip().splitlines()[-1])
        rates = f"{found['files'] / found['seconds']:,.0f} | {found['files'] / found['cpu']:,.0f}"
        print(
            f"| {name} | {found['files']:,} | {rates} | {found['peak_MB']} ({found['largest_child_MB']}) |", flush=True
        )


if __name__ == "__main__":
    main()
