"""What a step of DP-SGD costs beside one without privacy, by engine, and which engines are right on which network.

    python tests/benchmarks/private_step.py [--threads 1] [--repeats 3] [--out FILE] [--only steps|maps|others|networks]

Steps: milliseconds an image as a multiple of those of an ordinary step on the same batch, measured in turn in one run
(the least of the repeats each); memory: the peak over the process before, on Linux. Agreement: the relative distance of
an engine's clipped sum from that of ordinary backward passes, one a unit, in float64. All on random images.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from client.privacy.choice import disagreement
from client.privacy.clipping import Gradients, Sample, clip_factors, length, trainable
from client.privacy.engines import ENGINES, ONE_IMAGE
from common.architectures import NETWORKS
from common.job import Job
from common.networks import build_network, case_shape, make_private_ready
from common.tasks.registry import build_task

AGREES = 1e-9
STEPS = (
    ("small-cnn", (28, 28), 64),
    ("resnet18", (64, 64), 16),
    ("densenet121", (64, 64), 16),
    ("small-cnn", (24, 24, 24), 16),
    ("resnet18", (32, 32, 32), 8),
)
MAPS = (
    ("unet", (64, 64), 8),
    ("basic-unet", (64, 64), 8),
    ("segresnet", (64, 64), 8),
    ("dynunet", (64, 64), 8),
    ("attention-unet", (64, 64), 8),
    ("swin-unetr", (64, 64), 4),
    ("unet", (32, 32, 32), 4),
)
"""The same for networks that give a map: segmentation."""
OTHERS = (
    ("heatmap-detector", (64, 64), 8),
    ("heatmap-detector", (32, 32, 32), 4),
    ("residual-unet", (64, 64), 8),
    ("unrolled-cnn", (64, 64), 8),
    ("attention-mil", (8, 48, 48), 8),
)
"""The same for detection, reconstruction, and bags (images, rows, columns)."""
"""Network, size of an image, images in memory at once."""


@dataclass(frozen=True)
class Cost:
    """Of one way to make a step: seconds, bytes at the peak, and the distance from the truth."""

    seconds: float
    memory: int
    error: float


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy of each image, or, for outputs that are images, the mean of their squares."""
    if outputs.dim() == 2:
        return nn.functional.cross_entropy(outputs, targets, reduction="none")
    return outputs.flatten(1).square().mean(dim=1)


def registered(name: str, size: tuple[int, ...]) -> tuple[nn.Module, tuple[int, ...]]:
    """Return a network of the project's table, and the shape of what it sees: (C, *size)."""
    kinds = {"values": "classification", "map": "segmentation", "boxes": "detection", "image": "reconstruction"}
    task: dict[str, object] = {"kind": kinds[NETWORKS[name].gives], "labels": ["n", "p"]}
    data: dict[str, object] = {"collection": "c", "size": list(size)}
    if name == "unrolled-cnn":
        task["parameters"] = {"sees": "k-space"}
    if NETWORKS[name].bag:
        data |= {"bag": "slide", "channels": 3}
    job = Job.model_validate({"name": "j", "sites": ["a"], "task": task, "data": data, "network": {"name": name}})
    return build_network(job), build_task(job).input_shape(case_shape(job))


def sample(shape: tuple[int, ...], sizes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Sample:
    """Return random images in units of `sizes`."""
    random = torch.Generator().manual_seed(0)
    count = sum(sizes)
    return Sample(torch.rand(count, *shape, generator=random, dtype=dtype), torch.arange(count) % 2, sizes)


def ordinary(network: nn.Module, of: Callable[[Tensor, Tensor], Tensor], units: Sample, _: float) -> object:
    """Make the gradient of a step without privacy."""
    value = of(network(units.images), units.targets).mean()
    return torch.autograd.grad(value, trainable(network), allow_unused=True), float(value.detach())


def truth(network: nn.Module, units: Sample, clip_norm: float) -> Gradients:
    """Return the sum of the units' clipped gradients by the book: one `backward` a unit."""
    total, start = [torch.zeros_like(parameter) for parameter in trainable(network)], 0
    for size in units.sizes:
        rows = slice(start, start + size)
        start += size
        network.zero_grad(set_to_none=False)
        loss(network(units.images[rows]), units.targets[rows]).mean().backward()
        found = [torch.zeros_like(p) if p.grad is None else p.grad for p in trainable(network)]
        factor = float(clip_factors(length(found), clip_norm))
        total = [a + factor * b for a, b in zip(total, found, strict=True)]
    network.zero_grad(set_to_none=True)
    return total


def error_of(name: str, network: nn.Module, units: Sample) -> float:
    """Return an engine's relative error, the larger one of clipped and free gradients; infinite if it refuses."""
    exact = copy.deepcopy(network).double().train()
    if disagreement(truth(exact, units, math.inf), truth(exact, units, math.inf)) > 0:
        exact.eval()  # it draws random numbers in training, which two passes draw differently
    try:
        free, whole = truth(exact, units, math.inf), math.inf
        clip = 1e-3 * float(length(free))
        pairs = [(clip, truth(exact, units, clip)), (whole, free)]
        return max(disagreement(ENGINES[name](exact, loss, units, bound)[0], right) for bound, right in pairs)
    except Exception:
        return math.inf


def _memory(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def _peak(run: Callable[[], object]) -> int:
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # give back what was freed before, or it would be used again unseen
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from what is in memory now
    before = _memory("VmRSS")
    run()
    return max(0, _memory("VmHWM") - before)


def step_costs(name: str, size: tuple[int, ...], images: int, unit: int, repeats: int) -> dict[str, Cost]:
    """Return what each engine costs on a network of the table, and, as "none", a step without privacy."""
    network, shape = registered(name, size)
    network, units = network.train(), sample(shape, (unit,) * (images // unit))
    small = sample(shape, (1, 1, 1) if unit == 1 else (2, 1), torch.float64)
    ways: dict[str, Callable[..., object]] = {"none": ordinary}
    errors = {"none": 0.0}
    for engine, way in ENGINES.items():
        errors[engine] = math.inf if unit > 1 and engine in ONE_IMAGE else error_of(engine, network, small)
        if math.isfinite(errors[engine]):
            ways[engine] = way
    seconds = dict.fromkeys(ways, math.inf)
    # On one thread the processor's time: what else runs on the machine then counts little.
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    for turn in range(repeats + 1):
        for engine, way in ways.items():
            started = clock()
            way(network, loss, units, 1.0)
            if turn:  # the first one warms up
                seconds[engine] = min(seconds[engine], clock() - started)
    memory = {engine: _peak(lambda way=way: way(network, loss, units, 1.0)) for engine, way in ways.items()}
    return {engine: Cost(seconds[engine], memory[engine], errors[engine]) for engine in ways}


def step_table(steps: Sequence[tuple[str, tuple[int, ...], int]], repeats: int) -> Iterator[str]:
    """Yield the lines of a table of costs."""
    yield f"| network, image | unit | none, ms an image | {' | '.join(ENGINES)} |"
    yield "|---" * (3 + len(ENGINES)) + "|"
    for name, size, images in steps:
        for unit in (1, 4):
            costs = step_costs(name, size, images, unit, repeats)
            base = costs["none"]
            cells = [_cell(costs.get(engine), base) for engine in ENGINES]
            what = f"{name} {'x'.join(map(str, size))} | {unit} | {1000 * base.seconds / images:.1f}"
            yield f"| {what}, {base.memory / 2**20:.0f} MiB | {' | '.join(cells)} |"


def _cell(cost: Cost | None, base: Cost) -> str:
    if cost is None:
        return "-"
    wrong = "" if cost.error <= AGREES else f" WRONG by {cost.error:.1g}"
    return f"{cost.seconds / base.seconds:.2f}, {cost.memory / 2**20:.0f} MiB{wrong}"


class First(nn.Module):
    """A network that gives only the first of its outputs."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Return the first output."""
        outputs = self.network(images)
        return outputs if isinstance(outputs, Tensor) else outputs[0]


def monai_networks(d: int) -> dict[str, Callable[[], nn.Module]]:
    """Return MONAI networks of `d` dimensions, small, for one channel."""
    from monai.networks import nets

    size, shape = 32, {"spatial_dims": d, "in_channels": 1, "out_channels": 2}
    plain = (3,) * 3
    return {
        "SegResNet": lambda: nets.SegResNet(**shape, init_filters=8),
        "DynUNet": lambda: nets.DynUNet(**shape, kernel_size=plain, strides=(1, 2, 2), upsample_kernel_size=(2, 2)),
        "UNet": lambda: nets.UNet(**shape, channels=(4, 8, 16), strides=(2, 2), num_res_units=1),
        "AttentionUnet": lambda: nets.AttentionUnet(**shape, channels=(4, 8, 16), strides=(2, 2)),
        "VNet": lambda: nets.VNet(**shape),
        "SwinUNETR": lambda: nets.SwinUNETR(**shape, feature_size=12),
        "UNETR": lambda: nets.UNETR(
            1, 2, (size,) * d, spatial_dims=d, feature_size=4, hidden_size=16, mlp_dim=32, num_heads=2
        ),
        "ViT": lambda: nets.ViT(
            1, (size,) * d, (8,) * d, spatial_dims=d, hidden_size=24, mlp_dim=48, num_layers=2, num_heads=2,
            classification=True, num_classes=2,
        ),
        "DenseNet121": lambda: nets.DenseNet121(**shape),
        "ResNet18": lambda: nets.resnet18(spatial_dims=d, n_input_channels=1, num_classes=2),
        "SEResNet50": lambda: nets.SEResNet50(spatial_dims=d, in_channels=1, num_classes=2),
        "EfficientNet-B0": lambda: nets.EfficientNetBN(
            "efficientnet-b0", pretrained=False, spatial_dims=d, in_channels=1, num_classes=2
        ),
        "HighResNet": lambda: nets.HighResNet(**shape),
    }  # fmt: skip


def network_table() -> Iterator[str]:
    """Yield the lines of the second table."""
    yield f"| network | | {' | '.join(ENGINES)} |"
    yield "|---" * (2 + len(ENGINES)) + "|"
    for d in (2, 3):
        for name, build in monai_networks(d).items():
            torch.manual_seed(0)
            try:
                network = First(make_private_ready(build()))
                network(torch.rand(1, 1, *(32,) * d))
            except Exception as error:  # a package that MONAI can do without is missing, or it knows no 2D
                print(f"{name} {d}D is left out: {str(error).splitlines()[0]}", file=sys.stderr)
                continue
            errors = [_verdict(engine, network, d) for engine in ENGINES]
            yield f"| {name} | {d}D | {' | '.join(errors)} |"


def _verdict(engine: str, network: nn.Module, d: int) -> str:
    sizes = (1, 1) if engine in ONE_IMAGE else (2, 1)
    error = error_of(engine, network, sample((1, *(32,) * d), sizes, torch.float64))
    return "refuses" if math.isinf(error) else "agrees" if error <= AGREES else f"WRONG by {error:.2g}"


def main() -> int:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--repeats", type=int, default=3, help="turns, of which the fastest counts")
    parser.add_argument("--only", choices=("steps", "maps", "others", "networks"), help="one of the tables")
    parser.add_argument("--out", type=Path, help="also write the tables here")
    wanted = parser.parse_args()
    torch.set_num_threads(wanted.threads)
    warnings.simplefilter("ignore")
    lines = []
    tables = {
        "steps": step_table(STEPS, wanted.repeats),
        "maps": step_table(MAPS, wanted.repeats),
        "others": step_table(OTHERS, wanted.repeats),
        "networks": network_table(),
    }
    for table in [tables[wanted.only]] if wanted.only else tables.values():
        for line in table:
            print(line, flush=True)
            lines.append(line)
        lines.append("")
    load = f"{os.cpu_count()} cores, {wanted.threads} threads, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}"
    print(load)
    if wanted.out:
        wanted.out.write_text("\n".join([*lines, load]) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
