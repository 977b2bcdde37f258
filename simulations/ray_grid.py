"""The same federation on Ray: many processes, many GPUs, many machines.

Each worker is resident: it has the network, its share of the hospitals, their decoded cases, accounts and memories. The
model goes out once a round to all of them. Where the strategy sums, each worker sums its own hospitals' updates, and
one partial sum comes back from each; sums are exact, so the grouping changes no bit.
"""

from __future__ import annotations

import heapq
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import ray
import torch
from flwr.app import Message

from common.errors import UpdateError
from common.job import Job
from common.networks import local_names
from common.strategies import FedBuff
from common.update import Answer, Request, Tensors
from server.replies import Summed, check_update
from server.strategies.registry import build_strategy
from server.strategies.strategy import Gathering, Update
from simulations.crew import Members
from simulations.grid import BY_REFERENCE, InProcessGrid

log = logging.getLogger("wardround.simulation")


class Worker:
    """One resident process: some of the hospitals, and the sum of their updates of the round."""

    def __init__(self, members: Members, sums: bool, threads: int) -> None:
        """Take the hospitals; none is made yet."""
        torch.set_num_threads(threads)
        self._members, self._sums = members, sums
        self._local = local_names(members.job)
        self._round = 0
        self._gathering: Gathering | None = None

    def answer(self, name: str, request: Request, turn: int) -> Answer:
        """Let a hospital answer. Where sums are made here, a good update stays here and its numbers go."""
        answer = self._members.member(name).answer(request)
        if not self._sums or request.kind != "train" or answer.status != "ok":
            return answer
        shared = {key: tensor for key, tensor in request.model.items() if key not in self._local}
        if turn != self._round or self._gathering is None:
            self._round, self._gathering = turn, build_strategy(request.job).begin(shared, {})
        try:
            check_update(answer, request.job, shared, None)
            self._gathering.add(Update.of(answer))
        except UpdateError:
            return answer  # whoever checks it next says what is wrong
        return Summed(**(vars(answer) | {"tensors": None}))

    def partial(self, turn: int) -> Gathering | None:
        """Hand the sum of a round over."""
        found = self._gathering if turn == self._round else None
        self._gathering = None
        return found

    def memory(self, name: str) -> Tensors:
        """Return what a strategy left at a hospital."""
        return self._members.memory(name)

    def remembered(self) -> tuple[Tensors, Any]:
        """Return what the hospitals here remember."""
        return self._members.remembered()

    def remember(self, tensors: Tensors, spent: Any) -> None:
        """Take it back."""
        self._members.remember(tensors, spent)


@dataclass(frozen=True)
class _Asked:
    """A message under way: who answers, in which exchange, and the answer to come."""

    message: Message
    turn: int
    answer: Any


class RayGrid(InProcessGrid):
    """A grid whose nodes answer in Ray's workers, all at once; replies are taken in the order of virtual time."""

    def __init__(self, workers: list[Any], names: Mapping[int, str], pace: Mapping[int, float]) -> None:
        """Take the workers; node number n is at worker (n - 1) modulo their count."""
        super().__init__({}, pace=pace, carrier=BY_REFERENCE)
        self._workers, self._names = workers, names
        self._asked: dict[str, _Asked] = {}
        self._turn = 0
        self._request: tuple[Request, Any] | None = None

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of all nodes, in their order."""
        return list(self._names)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Hand messages to the workers that hold their nodes; return an id for each, in order."""
        return [self._send(message) for message in messages]

    def _send(self, message: Message) -> str:
        node = message.metadata.dst_node_id
        if node not in self._names:
            return ""
        request = BY_REFERENCE.request_in(message.content)
        if self._request is None or self._request[0] is not request:
            self._turn += 1
            self._request = request, ray.put(request)  # once for all workers
        self._pushed += 1
        message_id = f"message-{self._pushed}"
        message.metadata.__dict__["_message_id"] = message_id
        worker = self._workers[(node - 1) % len(self._workers)]
        answer = worker.answer.remote(self._names[node], self._request[1], self._turn)
        self._asked[message_id] = _Asked(message, self._turn, answer)
        heapq.heappush(self._queue, (self.clock + self._pace.get(node, 1.0), self._pushed, message_id))
        return message_id

    def _reply(self, message_id: str) -> Message:
        asked = self._asked.pop(message_id)
        return self.reply_with(asked.message, ray.get(asked.answer))

    def take_sums(self) -> list[Gathering]:
        """Return the workers' sums of the exchange that has just closed."""
        return [found for found in ray.get([one.partial.remote(self._turn) for one in self._workers]) if found]


class OnRay:
    """All hospitals in Ray's workers."""

    def __init__(self, members: Members, workers: int | None, threads: int) -> None:
        """Start Ray, or join the one that is there (RAY_ADDRESS), and the workers. Raises UsageError as Ray fails."""
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # nothing phones home
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        self._started = not ray.is_initialized()
        if self._started:
            ray.init(
                include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False,
                num_cpus=None if os.environ.get("RAY_ADDRESS") else workers,
            )  # fmt: skip
        job = members.job
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        count = workers or max(1, int(resources.get("CPU", 1)))
        gpus = min(1.0, resources.get("GPU", 0) / count) if members.device.type == "cuda" else 0
        made: Any = ray.remote(num_cpus=1, num_gpus=gpus)(Worker)
        shared = ray.put(members)
        self._workers: list[Any] = [made.remote(shared, _sums(job), threads) for _ in range(min(count, len(job.sites)))]
        self.node_ids = members.node_ids
        names = {number: name for name, number in self.node_ids.items()}
        self.grid: RayGrid = RayGrid(self._workers, names, members.pace)

    @property
    def clock(self) -> float:
        """Virtual time so far."""
        return self.grid.clock

    def memories(self) -> dict[str, Tensors]:
        """Return what strategies left at each hospital."""
        asked = {name: self._worker(name).memory.remote(name) for name in self.node_ids}
        return dict(zip(asked, ray.get(list(asked.values())), strict=True))

    def remembered(self) -> tuple[Tensors, Any]:
        """Return what all hospitals remember."""
        tensors: Tensors = {}
        spent: dict[str, Any] = {}
        for found, cost in ray.get([worker.remembered.remote() for worker in self._workers]):
            tensors |= found
            spent |= cost
        return tensors, spent

    def remember(self, tensors: Tensors, spent: Any) -> None:
        """Give each worker back what its hospitals remembered."""
        for worker in self._workers:
            mine = {name for name in self.node_ids if self._worker(name) is worker}
            ray.get(
                worker.remember.remote(
                    {key: tensor for key, tensor in tensors.items() if key.split("/", 1)[0] in mine},
                    {name: cost for name, cost in spent.items() if name in mine},
                )
            )

    def close(self) -> None:
        """End the workers, and Ray if it was started here."""
        for worker in self._workers:
            ray.kill(worker)
        if self._started:
            ray.shutdown()

    def _worker(self, name: str) -> Any:
        return self._workers[(self.node_ids[name] - 1) % len(self._workers)]


def _sums(job: Job) -> bool:
    """Whether workers may sum: not where each update is looked at by itself, or comes in its own time."""
    one_by_one = job.privacy.mechanism == "central" or isinstance(job.aggregation.known_parameters, FedBuff)
    return build_strategy(job).streaming and not one_by_one
