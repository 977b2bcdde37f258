"""Training: it learns, with and without privacy; it repeats to the bit without; and FedProx pulls where it should."""

import numpy as np
import pytest
import torch

from client.dataset import CaseSet
from client.evaluation import Split, evaluate
from client.pull import towards
from client.training import Mechanism, plan_steps, train_round
from common.errors import JobError
from common.job import parse_job
from common.networks import build_network, initial_model, tensors_of
from common.privacy import noise_for
from common.tasks.registry import build_task

CPU = torch.device("cpu")


def job(**changes):
    settings = {
        "rate": 0.1,
        "epochs": 1,
        "mechanism": "none",
        "mu": 0.0,
        "augment": "none",
        "engine": "auto",
        "unit": "patient",
        "network": "small-cnn",
        "size": 16,
        "physical": 64,
        "decay": 0.0,
        "optimizer": "sgd",
        "secure": "false",
        "averaging": 0.0,
    }
    settings |= changes
    return parse_job(
        """
name = "j"
sites = ["a"]
[task]
labels = ["dark", "bright"]
[data]
collection = "c"
size = [{size}, {size}]
augment = "{augment}"
[network]
name = "{network}"
[training]
optimizer = "{optimizer}"
learning_rate = {rate}
weight_decay = {decay}
local_epochs = {epochs}
batch_size = 20
averaging = {averaging}
[aggregation]
strategy = "fedprox"
proximal_mu = {mu}
[privacy]
mechanism = "{mechanism}"
engine = "{engine}"
unit = "{unit}"
physical_batch = {physical}
secure_noise = {secure}
""".format(**settings)
    )


def cases(patients=60, images=2, seed=0, size=16):
    """Bright and dark squares on noise: easy, but not for a network that has not looked."""
    random = np.random.default_rng(seed)
    labels = ["bright" if patient % 2 else "dark" for patient in range(patients) for _ in range(images)]
    pixels = random.random((len(labels), 1, size, size)).astype(np.float32) * 0.6
    for row, label in enumerate(labels):
        pixels[row, 0, 5:11, 5:11] += 0.4 if label == "bright" else 0.0
    return CaseSet(images=pixels, labels=tuple(labels), patients=np.repeat(np.arange(patients), images))


def trained(a_job, data, *, rounds=1, mechanism=None, anchor=None):
    task = build_task(a_job)
    network = build_network(a_job)
    results = [
        train_round(
            network, data, task.targets(data), task, a_job, number,
            mechanism=mechanism, pull=towards(a_job, anchor or initial_model(a_job)), device=CPU,
        )
        for number in range(1, rounds + 1)
    ]  # fmt: skip
    held_out = cases(seed=9)
    return network, results, evaluate(network, Split(held_out, task.targets(held_out)), task, CPU)


@pytest.mark.parametrize("augment", ["none", "light"])
def test_it_learns_without_privacy(augment):
    _, results, metrics = trained(job(augment=augment), cases(), rounds=8)
    assert results[-1].loss < results[0].loss
    assert metrics["eval.auc"] > 0.95


@pytest.mark.parametrize("engine", ["plain", "bookkeeping", "vmap", "hooks"])
@pytest.mark.parametrize("unit", ["patient", "image"])
def test_it_learns_with_privacy_whatever_the_engine_and_the_unit(engine, unit):
    a_job, data = job(mechanism="dp-sgd", engine=engine, unit=unit, rate=0.15, epochs=3), cases(150)
    plan = plan_steps(a_job, data)
    noise = noise_for(8.0, 1e-5, plan.sample_rate, plan.steps_per_round * 5)
    _, _, metrics = trained(a_job, data, rounds=5, mechanism=Mechanism(noise, plan.sample_rate))
    assert metrics["eval.auc"] > 0.85  # of 20 runs all had 1.000; at a rate of 0.5 two of 40 diverged


def test_it_learns_with_privacy_and_cryptographic_noise_and_adamw():
    a_job, data = job(mechanism="dp-sgd", secure="true", optimizer="adamw", rate=0.01, epochs=3), cases(150)
    plan = plan_steps(a_job, data)
    noise = noise_for(8.0, 1e-5, plan.sample_rate, plan.steps_per_round * 5)
    _, _, metrics = trained(a_job, data, rounds=5, mechanism=Mechanism(noise, plan.sample_rate))
    assert metrics["eval.auc"] > 0.9


def test_without_privacy_the_same_round_gives_the_same_bits_and_another_round_others():
    a_job, data = job(augment="light"), cases()
    first, again = (tensors_of(trained(a_job, data)[0]) for _ in range(2))
    other = tensors_of(trained(a_job, data, rounds=2)[0])
    assert all(first[name].tobytes() == again[name].tobytes() for name in first)
    assert any(first[name].tobytes() != other[name].tobytes() for name in first)


def test_a_network_that_draws_random_numbers_repeats_to_the_bit_too_and_disturbs_nobody_elses():
    a_job, data = job(network="efficientnet-b0", size=32), cases(4, size=32)
    task = build_task(a_job)

    def once():
        network = build_network(a_job)
        train_round(
            network, data, task.targets(data), task, a_job, 1,
            mechanism=None, pull=towards(a_job, initial_model(a_job)), device=CPU,
        )  # fmt: skip
        return tensors_of(network)

    torch.manual_seed(1)
    first, drawn = once(), torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(3), drawn)
    again = once()
    assert all(first[name].tobytes() == again[name].tobytes() for name in first)


def test_weight_decay_is_decoupled_from_the_gradient_and_its_momentum():
    class Still(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.bias, self.weight = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.ones(5))

        def forward(self, images):
            return self.bias.expand(len(images), 2) + 0 * self.weight.sum()

    a_job, data, task = job(decay=0.5, rate=0.1), cases(30), build_task(job())
    network = Still()
    result = train_round(network, data, task.targets(data), task, a_job, 1, mechanism=None, device=CPU)
    assert network.weight[0].item() == pytest.approx(0.95**result.steps, rel=1e-5)


@pytest.mark.parametrize("mechanism", [None, Mechanism(0.0, 1.0)])
def test_with_averaging_the_mean_of_the_weights_leaves_and_the_steps_are_as_they_were(mechanism):
    def weights(steps, averaging):
        a_job = job(mechanism="dp-sgd" if mechanism else "none", engine="plain", epochs=steps, averaging=averaging)
        network, (result,), _ = trained(a_job, cases(10, images=1), mechanism=mechanism)  # a step takes all of them
        assert result.steps == steps
        return torch.nn.utils.parameters_to_vector(network.parameters()).detach()

    start = torch.nn.utils.parameters_to_vector(build_network(job()).parameters()).detach()
    first = 0.1 * start + 0.9 * weights(1, 0.0)
    torch.testing.assert_close(weights(1, 0.15), first)
    torch.testing.assert_close(weights(2, 0.15), 0.15 * first + 0.85 * weights(2, 0.0))


@pytest.mark.parametrize("engine", ["auto", "plain", "bookkeeping", "vmap", "hooks"])
@pytest.mark.parametrize("physical", [1, 2, 3, 7])
def test_the_physical_batch_bounds_what_is_in_memory_and_has_no_effect_on_the_result(engine, physical):
    # Everyone is sampled and there is no noise, so that two runs can be compared.
    data, exactly = cases(8, 5), Mechanism(0.0, 1.0)
    whole, _, _ = trained(job(mechanism="dp-sgd", engine="plain"), data, mechanism=exactly)
    a_job = job(mechanism="dp-sgd", engine=engine, physical=physical)
    task, network, seen = build_task(a_job), build_network(a_job), []
    hook = network.register_forward_pre_hook(lambda _, images: seen.append(len(images[0])))
    train_round(
        network, data, task.targets(data), task, a_job, 1,
        mechanism=exactly, pull=towards(a_job, initial_model(a_job)), device=CPU,
    )  # fmt: skip
    hook.remove()
    assert max(seen) <= physical
    expected = tensors_of(whole)
    assert all(np.allclose(tensor, expected[name], atol=1e-5) for name, tensor in tensors_of(network).items())


def test_a_network_that_keeps_statistics_of_images_is_refused_with_privacy():
    class Remembers(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(256, 2)
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, images):
            self.seen += images.detach().mean()
            return self.layer(images.flatten(1))

    a_job, data, task = job(mechanism="dp-sgd", engine="plain"), cases(), build_task(job())
    with pytest.raises(JobError, match='keeps statistics of images in "seen"'):
        train_round(
            Remembers(), data, task.targets(data), task, a_job, 1,
            mechanism=Mechanism(1.0, 0.3), device=CPU,
        )  # fmt: skip


def test_an_unknown_engine_is_refused_before_any_privacy_is_spent():
    with pytest.raises(JobError, match='unknown engine "gost"'):
        plan_steps(job(mechanism="dp-sgd", engine="gost"), cases())
    with pytest.raises(JobError, match="ghost takes one image"):
        plan_steps(job(mechanism="dp-sgd", engine="ghost"), cases())


def test_a_model_that_has_come_apart_is_evaluated_without_metrics_and_without_a_crash():
    task, data, network = build_task(job()), cases(), build_network(job())
    with torch.no_grad():
        next(network.parameters()).fill_(float("nan"))
    assert set(evaluate(network, Split(data, task.targets(data)), task, CPU)) == {
        "eval.images", "eval.patients", "eval.seconds",
    }  # fmt: skip


def test_with_privacy_no_two_runs_are_alike():
    a_job, data = job(mechanism="dp-sgd"), cases()
    first, again = (tensors_of(trained(a_job, data, mechanism=Mechanism(1.0, 0.3))[0]) for _ in range(2))
    assert any(first[name].tobytes() != again[name].tobytes() for name in first)


def test_fedprox_with_mu_zero_is_plain_training_to_the_bit_and_with_a_large_mu_it_stays_near():
    data, start = cases(), initial_model(job())

    def distance(mu):
        moved = tensors_of(trained(job(mu=mu, rate=0.02), data, rounds=3)[0])
        return sum(float(np.square(moved[name] - start[name]).sum()) for name in start)

    assert distance(0.0) > 2 * distance(20.0) > 0
    far = {name: tensor + 5 for name, tensor in start.items()}
    here, elsewhere = (tensors_of(trained(job(), data, anchor=anchor)[0]) for anchor in (start, far))
    assert all(here[name].tobytes() == elsewhere[name].tobytes() for name in here)


def test_with_privacy_fedproxs_pull_comes_after_clipping_and_noise():
    # A pull as strong as this one would be clipped to nothing if it were part of a gradient.
    a_job, data = job(mechanism="dp-sgd", mu=1.0, rate=0.01), cases()
    near = {name: tensor + 100 for name, tensor in initial_model(a_job).items()}
    moved = tensors_of(trained(a_job, data, anchor=near, mechanism=Mechanism(0.01, 0.3))[0])
    steps = [float((moved[name] - tensor).mean()) for name, tensor in initial_model(a_job).items()]
    assert min(steps) > 1.0


def test_the_noise_that_goes_into_the_model_is_the_noise_that_was_accounted():
    # Rate so small that nobody is sampled: what moves the model is noise alone.
    a_job = job(mechanism="dp-sgd", rate=1.0)
    data, sigma, rate = cases(1000, 1), 3.0, 1e-6
    task = build_task(a_job)
    network, start = build_network(a_job), initial_model(a_job)
    small = a_job.model_copy(update={"training": a_job.training.model_copy(update={"local_epochs": 0.02})})
    result = train_round(
        network, data, task.targets(data), task, small, 1,
        mechanism=Mechanism(sigma, rate), pull=towards(a_job, start), device=CPU,
    )  # fmt: skip
    moved = np.concatenate([(tensor - start[name]).ravel() for name, tensor in tensors_of(network).items()])
    assert result.steps == 1
    assert moved.std() * (rate * 1000) == pytest.approx(sigma * a_job.privacy.clip_norm, rel=0.05)


def test_one_patient_more_moves_the_sum_of_a_step_by_at_most_the_clip_norm_however_many_images():
    a_job = job(mechanism="dp-sgd", rate=1.0, epochs=0.01)
    start = initial_model(a_job)

    def moved(data):
        task, network = build_task(a_job), build_network(a_job)
        train_round(
            network, data, task.targets(data), task, a_job, 1,
            mechanism=Mechanism(0.0, 1.0), pull=towards(a_job, start), device=CPU,
        )  # fmt: skip
        units = data.patient_count
        return np.concatenate([((t - start[n]) * units).ravel() for n, t in tensors_of(network).items()])

    without, everyone = cases(10, 12), cases(11, 12)
    less = CaseSet(everyone.images[:120], everyone.labels[:120], everyone.patients[:120])
    assert less.labels == without.labels
    assert np.linalg.norm(moved(everyone) - moved(less)) <= 1.0 + 1e-3


def test_evaluation_changes_nothing_and_leaves_no_metric_that_may_not_leave():
    from common.release import METRIC_FIELDS

    network, _, metrics = trained(job(), cases())
    assert set(metrics) <= set(METRIC_FIELDS)
    before, task, data = tensors_of(network), build_task(job()), cases()
    evaluate(network, Split(data, task.targets(data)), task, CPU)
    assert all(np.array_equal(tensor, before[name]) for name, tensor in tensors_of(network).items())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")
@pytest.mark.parametrize("mechanism", [None, Mechanism(1.0, 0.3)])
def test_it_trains_on_a_gpu_with_mixed_precision(mechanism):
    a_job, data = job(mechanism="dp-sgd" if mechanism else "none"), cases()
    task = build_task(a_job)
    network = build_network(a_job).cuda()
    result = train_round(
        network, data, task.targets(data), task, a_job, 1,
        mechanism=mechanism, pull=towards(a_job, initial_model(a_job)), device=torch.device("cuda"),
    )  # fmt: skip
    assert np.isfinite(result.loss)
