"""Our steps of SGD are torch's, to the bit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from client.sgd import SGD


def parameters(seed):
    random = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=random)) for shape in ((3, 4), (5,))]


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**31), st.sampled_from([0.0, 0.5, 0.9]), st.floats(1e-4, 1.0))
def test_every_step_is_torchs_to_the_bit(seed, momentum, rate):
    ours, theirs = parameters(seed), parameters(seed)
    mine, other = SGD(ours, rate, momentum), torch.optim.SGD(theirs, lr=rate, momentum=momentum)
    random = torch.Generator().manual_seed(seed + 1)
    for _ in range(4):
        for one, two in zip(ours, theirs, strict=True):
            one.grad = torch.randn(one.shape, generator=random)
            two.grad = one.grad.clone()
        mine.step()
        other.step()
    for one, two in zip(ours, theirs, strict=True):
        assert one.detach().numpy().tobytes() == two.detach().numpy().tobytes()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_parameter_without_a_gradient_stays(momentum):
    moved, still = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    optimizer = SGD([moved, still], 0.5, momentum)
    moved.grad = torch.ones(2)
    optimizer.step()
    assert moved.tolist() == [0.5, 0.5]
    assert still.tolist() == [1.0, 1.0]
    optimizer.zero_grad()
    assert moved.grad is None
