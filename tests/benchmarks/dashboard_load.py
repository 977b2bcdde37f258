"""What the dashboard costs: first paint over a large registry, rounds beside many open pages, memory over many pages.

Run by hand: python tests/benchmarks/dashboard_load.py paint|rounds|memory [--json]
paint   Chromium's first contentful paint of each page over 100 sites and 1,000 runs, one of 500 rounds with all sites:
        first after the dashboard's start, and the median of later ones, each in a browser context with an empty cache.
rounds  Two sites of phantom images train in a federation of processes; blocks of rounds without and with 50 open pages
        and 100 API requests a second take turns. With --apart the sites have this machine's last core to themselves,
        and coordinator, dashboard and load the others, as hospitals and coordinator have machines of their own;
        without it all share all. The load's own cost is in the ratio either way, but for priority (the generator is
        niced as far as can be; its pages are sockets, no browsers). A third kind of block, with a bare loop of the
        dashboard's priority and nothing else, says what any work on this machine costs.
memory  Pages are opened and closed in batches: the dashboard process' resident size after each. Goal: no growth.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / "dashboard"), str(HERE.parents[1])]

from large_registry import Large, make_large, more_rounds  # noqa: E402
from live_federation import Living, answers, chromium, living, until  # noqa: E402
from open_pages import OPENING  # noqa: E402

from client.policy import FILE_NAME, change_policy  # noqa: E402
from server.dashboard.security import COOKIE  # noqa: E402
from server.dashboard_cli import NICER  # noqa: E402
from server.people import People  # noqa: E402
from simulations.federation import free_port  # noqa: E402
from simulations.processes import Crew, wardround_command  # noqa: E402

PAINTED = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
JOB = """name = "load"
sites = {sites}
[task]
labels = ["normal", "pneumonia"]
[data]
collection = "{collection}"
[training]
local_epochs = {epochs}
[aggregation]
rounds = {rounds}
[privacy]
mechanism = "dp-sgd"
epsilon = 8.0
"""


@contextlib.contextmanager
def dashboard(large: Large, logs: Path) -> Iterator[tuple[str, int]]:
    """Serve a registry's dashboard; yield its address and process id."""
    port = free_port()
    with Crew(logs, {"WARDROUND_REGISTRY": "", "WARDROUND_KIT": ""}) as crew:
        command = [*wardround_command(), "dashboard", str(large.kit.folder), "--listen", f"127.0.0.1:{port}"]
        member = crew.start("dashboard", command)
        url = f"https://127.0.0.1:{port}"
        until(lambda: answers(f"{url}/health", str(large.kit.folder / "ca.crt")), 60)
        yield url, member.process.pid


def paint(options: argparse.Namespace) -> dict[str, Any]:
    """Return milliseconds to the first paint, and to the page's own content, by page."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        large = make_large(Path(folder) / "large")
        model = large.registry.run_detail(large.longest) and 2 * 1000
        pages = {"federation": "/", "runs": "/runs", "run": f"/runs/{large.longest}", "models": "/models",
                 "model": f"/models/{model}", "compare": f"/compare?runs={large.longest}"}  # fmt: skip
        for name, path in pages.items():
            with dashboard(large, Path(folder) / "logs") as (url, _):  # its own start: nothing has been read yet
                paints, contents = [], []
                for _ in range(1 + options.times):
                    context = window(browser, url, People(large.registry.database).open_session("viewer", "127.0.0.1"))
                    page = context.new_page()
                    began = time.monotonic()
                    page.goto(url + path, wait_until="commit")
                    page.locator("main section").first.wait_for()
                    contents.append(1000 * (time.monotonic() - began))
                    paints.append(page.evaluate(PAINTED))
                    context.close()
            found[name] = {
                "first": paints[0], "median": statistics.median(paints[1:]), "worst": max(paints[1:]),
                "content first": contents[0], "content median": statistics.median(contents[1:]),
            }  # fmt: skip
            print(f"{name:<12}" + "  ".join(f"{key} {value:7.0f} ms" for key, value in found[name].items()), flush=True)
    return found


def window(browser: Any, url: str, session: str) -> Any:
    """Return a browser window of its own, with an empty cache, in which somebody is signed in already."""
    context = browser.new_context(ignore_https_errors=True, viewport={"width": 1280, "height": 800})
    cookie = {"name": COOKIE, "value": session, "url": url, "secure": True, "httpOnly": True, "sameSite": "Lax"}
    context.add_cookies([cookie])
    return context


def rounds(options: argparse.Namespace) -> dict[str, Any]:
    """Return seconds a round without and with load, block by block, and their ratio."""
    with tempfile.TemporaryDirectory() as folder, living(Path(folder)) as alive:
        federation = alive.federation
        policy = federation.site_kit(federation.sites[0]) / FILE_NAME  # nobody is there to approve the job
        policy.write_text(change_policy(policy.read_text(), {"approval": "none"}, str(policy)))
        job = Path(folder) / "load.toml"
        text = JOB.format(
            sites=json.dumps(list(federation.sites)), collection="chest", epochs=options.epochs, rounds=10_000
        )
        job.write_text(text)
        command = [*wardround_command(), "run", str(job), "--kit", str(federation.coordinator_kit), "--json"]
        run = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)["run"]
        until(lambda: len(ends(alive, run)) > 5, 120)
        if options.apart:
            set_apart(alive)
        blocks: dict[str, list[list[float]]] = {"without": [], "with": [], "loop": []}
        told: list[dict[str, Any]] = []
        for number in range(len(blocks) * options.blocks):
            kind = list(blocks)[number % len(blocks)]
            beside = {"without": contextlib.nullcontext, "with": lambda: load(alive, run, options, told), "loop": loop}
            with beside[kind]():
                began = time.time() + OPENING + 1  # until the pages are open
                time.sleep(OPENING + 1 + options.seconds)
                until_now = [end for end in ends(alive, run) if end > began]
            spent = [b - a for a, b in itertools.pairwise(until_now)]
            blocks[kind].append(spent)
            told_of = (
                f"median {statistics.median(spent):.3f} s, mean {statistics.mean(spent):.3f} s, most {max(spent):.3f} s"
            )
            print(f"{kind:<8} {len(spent):>4} rounds, {told_of}", flush=True)
    medians = {kind: statistics.median(s for block in found for s in block) for kind, found in blocks.items()}
    pairs = [
        statistics.median(with_) / statistics.median(without)
        for without, with_ in zip(blocks["without"], blocks["with"], strict=True)
    ]
    ratios = {kind: medians[kind] / medians["without"] for kind in ("with", "loop")}
    result = {"medians": medians, "ratios": ratios, "pairs": pairs, "load": told}
    print(f"seconds a round {medians}, ratios {ratios}, by pairs {[round(pair, 3) for pair in pairs]}")
    for one in told:
        print(one)
    return result


def set_apart(alive: Living) -> None:
    """Give the sites the last core, and coordinator, dashboard and this process with its load the others."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[:-1])
    for one in psutil.Process().children(recursive=True):
        its = cores[-1:] if "site start" in " ".join(one.cmdline()) else cores[:-1]
        for thread in one.threads():
            os.sched_setaffinity(thread.id, its)


@contextlib.contextmanager
def loop() -> Iterator[None]:
    """A process of the dashboard's priority that does nothing but count."""
    spinner = subprocess.Popen(["nice", "-n", str(NICER), sys.executable, "-c", "while True: pass"])
    yield
    spinner.kill()
    spinner.wait()


def ends(alive: Living, run: str) -> list[float]:
    """When each round of training ended, seconds since 1970."""
    found = alive.federation.registry.run_detail(run).rounds
    return [one.started + one.seconds for one in found if one.kind == "train"]


@contextlib.contextmanager
def load(alive: Living, run: str, options: argparse.Namespace, told: list[dict[str, Any]]) -> Iterator[None]:
    """Keep pages open and requests coming for the block."""
    people = alive.people
    plan = {
        "url": alive.url, "authority": str(alive.federation.coordinator_kit / "ca.crt"),
        "session": people.open_session("viewer", "127.0.0.1"),
        "token": people.issue_token("viewer", "load", ["read"], 1)[1],
        "paths": ["/", f"/runs/{run}", "/runs", "/models"], "pages": options.pages, "rate": options.rate,
        "seconds": options.seconds + OPENING + 2,
    }  # fmt: skip
    generator = generate(plan)
    yield
    out, errors = generator.communicate(timeout=120)
    told.append(json.loads(out) if generator.returncode == 0 else {"failed": errors[-2000:]})


def generate(plan: dict[str, Any]) -> subprocess.Popen[str]:
    """Start the load generator, niced as far as can be."""
    command = ["nice", "-n", "19", sys.executable, str(HERE / "open_pages.py")]
    pipe = subprocess.PIPE
    started = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    assert started.stdin is not None
    started.stdin.write(json.dumps(plan))
    started.stdin.close()
    started.stdin = None
    return started


def memory(options: argparse.Namespace) -> dict[str, Any]:
    """Return the dashboard's resident size (MB) at the start and after each batch of pages."""
    with tempfile.TemporaryDirectory() as folder:
        large = make_large(Path(folder) / "large")
        people, growing = People(large.registry.database), more_rounds(large, start=501)
        token = people.issue_token("viewer", "load", ["read"], 1)[1]
        with dashboard(large, Path(folder) / "logs") as (url, process):
            sizes = [resident(process)]
            for number in range(options.batches):
                plan = {
                    "url": url, "authority": str(large.kit.folder / "ca.crt"), "token": token, "pages": options.pages,
                    "session": people.open_session("viewer", "127.0.0.1"), "rate": 20, "seconds": options.seconds,
                    "paths": ["/", f"/runs/{large.longest}", "/runs", "/models"],
                }  # fmt: skip
                generator = generate(plan)
                while generator.poll() is None:
                    next(growing)
                    time.sleep(2)
                told = generator.communicate()[0]
                time.sleep(options.settle)
                sizes.append(resident(process))
                print(f"after {(number + 1) * options.pages:>5} pages: {sizes[-1]:.0f} MB  {told.strip()}", flush=True)
    return {"megabytes": sizes}


def resident(process: int) -> float:
    """Megabytes of a process and what it has started."""
    whole = psutil.Process(process)
    return sum(one.memory_info().rss for one in (whole, *whole.children(recursive=True))) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["paint", "rounds", "memory"])
    parser.add_argument("--times", type=int, default=5, help="paint: how often each page is opened again")
    parser.add_argument("--blocks", type=int, default=4, help="rounds: pairs of blocks")
    parser.add_argument("--seconds", type=float, default=20.0, help="rounds, memory: a block's or batch's length")
    parser.add_argument("--pages", type=int, default=50, help="rounds, memory: open pages")
    parser.add_argument("--rate", type=float, default=100.0, help="rounds: API requests a second")
    parser.add_argument("--apart", action="store_true", help="rounds: sites on a core of their own")
    parser.add_argument("--epochs", type=float, default=2.0, help="rounds: the job's local epochs")
    parser.add_argument("--batches", type=int, default=10, help="memory: how many batches")
    parser.add_argument("--settle", type=float, default=45.0, help="memory: wait after a batch, till pages are gone")
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}", flush=True)
    result = {"paint": paint, "rounds": rounds, "memory": memory}[options.what](options)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
