"""The network's edge for tests of the coordinator: a grid whose sites are functions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import numpy as np
from flwr.app import Error, Message, MessageType
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from common.job import Job, parse_job
from common.release import Numbers, numbers_of
from common.update import Answer, Request, decode_request, encode_answer

Behaviour = Callable[[Request], Answer | None]


class PlaygroundGrid(Grid):
    """Delivers messages to functions by node id; None for an answer means: not yet. Nodes may be away."""

    def __init__(self, sites: Mapping[str, Behaviour]) -> None:
        self.node_ids = {name: 100 + number for number, name in enumerate(sites)}
        self.behaviours = {self.node_ids[name]: behaviour for name, behaviour in sites.items()}
        self.away: set[str] = set()
        self.asked: list[tuple[str, Request]] = []
        self.consents: dict[str, list[Answer]] = {}
        self._waiting: dict[str, Message] = {}
        self._pushed = 0
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, SUPERLINK_NODE_ID

    def set_run(self, run: Run) -> None: ...

    @property
    def run(self) -> Run:
        return Run.create_empty(1)

    def create_message(self, content, message_type, dst_node_id, group_id, ttl=None):
        raise NotImplementedError

    def send_and_receive(self, messages, *, timeout=None):
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return [node for name, node in self.node_ids.items() if name not in self.away]

    def name_of(self, node_id: int) -> str:
        return next(name for name, node in self.node_ids.items() if node == node_id)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        taken = []
        for message in messages:
            self._pushed += 1
            message.metadata.__dict__["_message_id"] = f"m{self._pushed}"
            self._waiting[message.metadata.message_id] = message
            request = decode_request(message.content)
            if request.kind != "consent":
                self.asked.append((self.name_of(message.metadata.dst_node_id), request))
            taken.append(message.metadata.message_id)
        return taken

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [reply for message_id in message_ids if (reply := self._pull(message_id)) is not None]

    def _pull(self, message_id: str) -> Message | None:
        message = self._waiting.get(message_id)
        if message is None:
            return None
        name = self.name_of(message.metadata.dst_node_id)
        if name in self.away:
            del self._waiting[message_id]
            return Message(Error(ErrorCode.NODE_UNAVAILABLE, "no heartbeat"), reply_to=message)
        if (asked := decode_request(message.content)).kind == "consent":
            del self._waiting[message_id]
            return Message(encode_answer(self._consent(name, asked)), reply_to=message)
        try:
            answer = self.behaviours[message.metadata.dst_node_id](decode_request(message.content))
        except RuntimeError as error:
            answer = Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, str(error))
        if answer is None:
            return None
        del self._waiting[message_id]
        return Message(answer if isinstance(answer, Error) else encode_answer(answer), reply_to=message)

    def _consent(self, name: str, request: Request) -> Answer:
        """What the site says when it is asked whether the job may run: yes, unless `consents` has other answers."""
        planned = self.consents.get(name, [])
        said = planned.pop(0) if len(planned) > 1 else planned[0] if planned else Answer(name, "", 0, "ok")
        return replace(said, site=name, job_digest=request.job.digest, number=request.number)


class NamelessGrid(PlaygroundGrid):
    """A grid of stock Flower: nobody knows a node's name until it is asked."""

    def push_messages(self, messages):
        queries = [message for message in messages if message.metadata.message_type == MessageType.QUERY]
        for message in queries:
            message.metadata.__dict__["_message_id"] = f"q{message.metadata.dst_node_id}"
            self._waiting[message.metadata.message_id] = message
        return [m.metadata.message_id for m in queries] or super().push_messages(messages)

    def _pull(self, message_id):
        message = self._waiting.get(message_id)
        if message is None or message.metadata.message_type != MessageType.QUERY:
            return super()._pull(message_id)
        del self._waiting[message_id]
        name = self.claims[self.name_of(message.metadata.dst_node_id)]
        return Message(encode_answer(Answer(name, "", 0, "ok")), reply_to=message)


def job_of(sites: Iterable[str] = ("north", "south", "west"), aggregation: str = "rounds = 3") -> Job:
    names = ", ".join(f'"{site}"' for site in sites)
    return parse_job(
        f'name = "chest"\nsites = [{names}]\n[task]\nlabels = ["no", "yes"]\n[data]\ncollection = "c"\n'
        f"[aggregation]\n{aggregation}\n"
    )


def model_of(value: float = 0.0) -> dict[str, np.ndarray]:
    return {"z.weight": np.full((3, 2), value, np.float32), "a.bias": np.full(2, value, np.float32)}


class Slow:
    """A site that answers round 1 only when it was asked for round 2 as well: its answer is late on any machine."""

    def __init__(self, site: HonestSite) -> None:
        self.site, self.newest = site, 0

    def __call__(self, request: Request) -> Answer | None:
        self.newest = max(self.newest, request.number)
        return self.site(request) if self.newest > 1 else None


def exact(values: dict[str, float]) -> Numbers:
    """Numbers as a job without privacy sends them, from their flat names."""
    return numbers_of(values, {name.split(".")[0]: "exact" for name in values})


class HonestSite:
    """Moves the model a fixed step towards its own target: deterministic given the model, as a site with a seed is."""

    def __init__(self, name: str, examples: int, target: float = 1.0, auc: Callable[[Request], float] | None = None):
        self.name, self.examples, self.target = name, examples, target
        self.auc = auc or (lambda request: 0.5 + 0.01 * (request.number + (request.kind == "evaluate")))

    def __call__(self, request: Request) -> Answer | None:
        metrics = {"eval.auc": self.auc(request), "eval.images": float(self.examples)}
        if request.kind == "evaluate":
            return Answer(
                self.name, request.job.digest, request.number, "ok", examples=self.examples, numbers=exact(metrics)
            )
        step = np.float32(0.37)
        target = np.float32(self.target)
        tensors = {name: tensor + step * (target - tensor) for name, tensor in request.model.items()}
        metrics |= {"train.loss": 1.0 / request.number, "train.images": float(self.examples)}
        return Answer(
            self.name,
            request.job.digest,
            request.number,
            "ok",
            examples=self.examples,
            numbers=exact(metrics),
            tensors=tensors,
        )
