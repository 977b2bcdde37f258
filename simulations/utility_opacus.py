"""Plain Opacus, as its tutorials use it: what this system's own DP-SGD is measured against.

Its own sampling, hooks, noise and accountant (`PrivacyEngine.make_private_with_epsilon` with every default), SGD with
momentum; the same network, weights at the start, images, epsilon and delta.

Reference: Yousefpour et al., "Opacus: User-Friendly Differential Privacy Library in PyTorch", 2021.
"""

from __future__ import annotations

import math
import warnings

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from client.dataset import CaseSet
from common.job import Job
from common.networks import build_network, tensors_of
from common.tasks.registry import build_task
from common.update import Tensors


def train_with_opacus(job: Job, cases: CaseSet) -> tuple[Tensors, float]:
    """Train the job's network on `cases`, each image a unit; return its tensors, and epsilon by Opacus' accountant.

    Of the job it takes seed, network, optimizer's settings, batch, passes over the data, epsilon, delta and clip norm.
    """
    from opacus import PrivacyEngine

    task, settings, privacy = build_task(job), job.training, job.privacy
    network = build_network(job).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=settings.learning_rate, momentum=settings.momentum)
    data = TensorDataset(torch.from_numpy(np.array(cases.images)), task.targets(cases))
    epochs = max(1, round(settings.local_epochs * job.aggregation.rounds))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it recommends its secure mode, and tells of hooks without inputs' gradients
        engine = PrivacyEngine()
        private, optimizer, loader = engine.make_private_with_epsilon(
            module=network,
            optimizer=optimizer,
            data_loader=DataLoader(data, batch_size=settings.batch_size),
            target_epsilon=privacy.epsilon,
            target_delta=privacy.delta,
            epochs=epochs,
            max_grad_norm=privacy.clip_norm,
        )
        for _ in range(epochs):
            _pass(private, optimizer, loader)
        return tensors_of(network), math.ceil(1e4 * engine.get_epsilon(privacy.delta)) / 1e4


def _pass(network: nn.Module, optimizer: torch.optim.Optimizer, loader: DataLoader[tuple[torch.Tensor, ...]]) -> None:
    loss = nn.CrossEntropyLoss()
    for images, targets in loader:
        optimizer.zero_grad()
        loss(network(images), targets).backward()
        optimizer.step()
