"""The Flower ServerApp: the same round loop under stock `flwr run` and Flower's simulation runtime.

Run config: `job` (a job file's path, or the job's TOML itself) and `output` (the folder of registry and models).
Under stock Flower a node is known by a number only: each is asked for its site's name first. The names are then the
sites' own word; who may connect at all is the SuperLink's node authentication. The resident coordinator, which knows
each name by its certificate, does not need to ask.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

from flwr.app import Context, Message, MessageType, RecordDict
from flwr.serverapp import Grid, ServerApp

from common.errors import RunError, UpdateError
from common.install import refuse_mixed_install
from common.job import Job, parse_job, read_job
from common.update import decode_answer
from server.execution import execute, raise_unless_completed
from server.registry import Registry
from server.submission import submit_job

LOOK_SECONDS, REMIND_SECONDS, ASK_AGAIN_SECONDS = 0.5, 30.0, 10.0
log = logging.getLogger("wardround.app")

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the job of the run config on the nodes of `grid`.

    Raises JobError for the job, and RunError for every ending but "completed".
    """
    refuse_mixed_install(__file__)
    job = job_of(str(context.run_config.get("job", "")))
    folder = Path(str(context.run_config.get("output", "") or "wardround-output"))
    folder.mkdir(parents=True, exist_ok=True)
    registry = Registry(f"sqlite:///{folder.resolve() / 'registry.sqlite'}", folder.resolve() / "models")
    name = submit_job(registry, job)
    registry.claim(name)
    log.info("run %s: results in %s", name, folder.resolve())
    node_ids = ask_names(grid, job.sites)
    status = execute(registry, name, grid, lambda: node_ids)
    raise_unless_completed(name, status, registry.summary(name).reason)


def job_of(text: str) -> Job:
    """Return the job that `text` is, or whose file it names. Raises JobError."""
    if "\n" in text or "=" in text:
        return parse_job(text, source="run config")
    return read_job(Path(text))


def ask_names(grid: Grid, sites: tuple[str, ...]) -> dict[str, int]:
    """Ask every node for its site's name until all of `sites` are found; return their node ids.

    Waits without end for sites that are not here yet, and says whom it waits for.

    Raises
    ------
    RunError
        Two nodes say that they are the same site.
    """
    asked: dict[str, int] = {}
    asked_at: dict[int, float] = {}
    names: dict[str, int] = {}
    reminded = time.monotonic()
    while True:
        for node in grid.get_node_ids():
            known = node in names.values() or node in asked.values()
            if not known and time.monotonic() - asked_at.get(node, float("-inf")) > ASK_AGAIN_SECONDS:
                asked_at[node] = time.monotonic()
                question = Message(RecordDict(), node, MessageType.QUERY)
                asked |= {key: node for key in grid.push_messages([question]) if key}
        for key in tuple(asked):
            for reply in grid.pull_messages([key]):
                _take_name(reply, asked.pop(key), names)
        if all(site in names for site in sites):
            return {site: names[site] for site in sites}
        if time.monotonic() - reminded > REMIND_SECONDS:
            reminded = time.monotonic()
            log.info("waiting for %s", ", ".join(site for site in sites if site not in names))
        time.sleep(LOOK_SECONDS)


def _take_name(reply: Message, node: int, names: dict[str, int]) -> None:
    if reply.has_error():
        log.warning("node %d did not say its name: %s", node, reply.error.reason)
        return
    try:
        name = decode_answer(reply.content).site
    except UpdateError as error:
        log.warning("node %d did not say its name: %s", node, error)
        return
    if names.setdefault(name, node) != node:
        raise RunError(f'two nodes say that they are site "{name}": stop one of them')
