"""A site that is killed at any moment of its training has never trained what its ledger does not count.

What was trained is known from outside the ledger: the child tells a file of every private gradient before it makes it,
and of every noised metric. WARDROUND_KILLS says how often to kill (default 25).
"""

import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message
from flwr.supercore.task_identity import TaskIdentity
from PIL import Image

import client.training
import client.visit
from client.app import answer
from client.intake.importer import import_folder
from client.policy import DEFAULT_POLICY
from client.privacy.ledger import LEDGER_FILE, Ledger
from client.record import site_log
from client.site import Site
from common.audit import Head, verify_log
from common.job import parse_job
from common.networks import initial_model
from common.update import Request, decode_answer, encode_request

KILLS = int(os.environ.get("WARDROUND_KILLS", "25"))
ROUNDS = 10 * KILLS + 100  # more than any machine gets through between the kills
JOB = parse_job(f"""
name = "j"
sites = ["north"]
[task]
labels = ["dark", "bright"]
[data]
collection = "squares"
size = [16, 16]
[training]
batch_size = 6
[aggregation]
rounds = {ROUNDS}
[privacy]
mechanism = "dp-sgd"
epsilon = 40
delta = 1e-5
engine = "plain"
""")


@pytest.fixture
def kit(tmp_path, write_kit):
    """A site with sixty patients, an image each, whose policy allows the job."""
    kit, folder = tmp_path / "kit", tmp_path / "images"
    kit.mkdir()
    folder.mkdir()
    generator = np.random.default_rng(1)
    rows = ["file,label"]
    for number in range(60):
        pixels = generator.integers(0, 128, (16, 16), dtype=np.uint8) + 127 * (number % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
        rows.append(f"{number}.png,{'bright' if number % 2 else 'dark'}")
    (folder / "labels.csv").write_text("\n".join(rows))
    write_kit(kit)
    policy = DEFAULT_POLICY.replace("collections = [] ", 'collections = ["*"] ')
    for old, new in (("per_run = 8.0", "per_run = 50.0"), ("for_life = 10.0", "for_life = 60.0")):
        policy = policy.replace(old, new)
    (kit / "policy.toml").write_text(policy)
    import_folder(kit, "squares", folder, folder / "labels.csv")
    return kit


def ask(site, model, number, witness=""):
    """Put the request of a round to the site's app, as the link does."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    message = Message(encode_request(Request("train", "run", number, JOB, model, witness=witness)), 7, "train")
    message.metadata.__dict__["_message_id"] = "m"
    return decode_answer(answer(message, site).content)


def begin(kit, truth, number, model):
    """In a child: open the site and answer round after round from `number`, telling `truth` of each private act."""
    file = os.open(truth, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def telling(what, act):
        def told(*arguments, **settings):
            os.write(file, f"{what} {current}\n".encode())
            return act(*arguments, **settings)

        return told

    client.training.private_gradient = telling("training", client.training.private_gradient)
    client.visit.noised_metrics = telling("metrics", client.visit.noised_metrics)
    site, witness = Site.open(kit, "cpu"), last_head(truth)
    for current in range(number, ROUNDS + 1):
        given = ask(site, model, current, witness)
        witness = given.head or witness
        os.write(file, f"{given.status} {current} {given.head or given.reason}\n".encode())


def lines_of(truth: Path) -> list[str]:
    return truth.read_text().splitlines() if truth.exists() else []


def told(truth: Path, what: str) -> list[list[str]]:
    return [line.split(" ", 2) for line in lines_of(truth) if line.startswith(f"{what} ")]


def last_head(truth):
    done = told(truth, "ok")
    return done[-1][2] if done else ""


def run_and_kill(kit, truth, number, model, acts, seconds):
    """Fork a site, and kill it so many seconds after it told of so many acts. Returns whether it was still alive."""
    before = len(lines_of(truth))
    child = os.fork()
    if child == 0:
        try:
            begin(kit, truth, number, model)
        finally:
            os._exit(3)
    end = time.monotonic() + 300
    while len(lines_of(truth)) < before + acts and time.monotonic() < end:
        time.sleep(0.002)
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "the site ended by itself"
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def assert_nothing_is_missing(kit, truth):
    """The ledger counts at least what was trained, round by round; the log is whole and holds what was witnessed."""
    heads = [Head.from_json(line[2]) for line in told(truth, "ok")]
    assert verify_log(kit / "audit.jsonl", witnesses=heads[-3:]) == []
    entries = Ledger(kit / LEDGER_FILE, site_log(kit)).entries()
    begun, counted = Counter(), Counter()
    for what in ("training", "metrics"):
        begun.update((what, int(line[1])) for line in told(truth, what))
    for entry in entries:
        counted[entry.purpose, entry.round] += entry.spending.steps
    assert all(counted[act] >= count for act, count in begun.items())
    return begun.total(), sum(counted[act] for act in counted if act[0] != "count")


@pytest.mark.slow
def test_a_site_killed_at_random_moments_never_counts_less_than_it_trained(kit, tmp_path):
    truth, model = tmp_path / "truth", initial_model(JOB)
    moments = random.Random(int(os.environ.get("WARDROUND_KILL_SEED", "3")))
    assert ask(Site.open(kit, "cpu"), model, 1).status == "ok"  # what is slow the first time is done before the forks
    killed, number, started = 0, 2, time.monotonic()
    while killed < KILLS:
        killed += run_and_kill(kit, truth, number, model, moments.randrange(25), moments.uniform(0.0, 0.1))
        begun, counted = assert_nothing_is_missing(kit, truth)
        # As a coordinator does: the round is asked for again, or was closed without the site.
        last = max((int(line[1]) for what in ("ok", "training", "metrics") for line in told(truth, what)), default=2)
        number = last if moments.random() < 0.25 else last + 2
    done = told(truth, "ok")
    print(
        f"\n{killed} kills in {time.monotonic() - started:.0f} s: {len(done)} rounds answered, {begun} private acts "
        f"begun, {counted} counted; {len(site_log(kit).entries())} entries in the audit log"
    )
    assert not told(truth, "failed")
    assert not told(truth, "refused")
    assert len(done) > KILLS / 5
    assert counted >= begun > 0
