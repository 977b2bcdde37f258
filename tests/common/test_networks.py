"""Every network: the same start everywhere, no batch statistics, and a model of another architecture is refused."""

import numpy as np
import pytest
import torch

from common.architectures import NETWORKS
from common.errors import JobError, UpdateError
from common.job import DataSection, parse_job
from common.networks import build_network, initial_model, load_tensors, tensors_of
from common.standardisation import StandardisedConv2d, StandardisedConv3d

OF_IMAGES = [name for name, one in NETWORKS.items() if not one.table and not one.bag and one.gives == "values"]
OF_TABLES = [name for name, architecture in NETWORKS.items() if architecture.table]
CASES = [(name, size) for name in OF_IMAGES for size in ("[32, 32]", "[32, 32, 32]")]


def job(name="small-cnn", size="[32, 32]", extra=""):
    return parse_job(f"""
name = "j"
sites = ["a"]
[task]
labels = ["n", "p"]
[data]
collection = "c"
size = {size}
[network]
name = "{name}"
{extra}""")


def table_job(name="linear", features=("age", "sex=1", "pulse"), extra="", seed=0):
    return parse_job(f"""
name = "j"
sites = ["a"]
seed = {seed}
[task]
labels = ["n", "p"]
[data]
collection = "c"
features = [{", ".join(f'"{feature}"' for feature in features)}]
[network]
name = "{name}"
{extra}""")


@pytest.mark.parametrize(("name", "size"), CASES)
def test_every_network_gives_an_answer_an_image_without_looking_at_the_others(name, size):
    network = build_network(job(name, size)).eval()
    assert not any(isinstance(layer, torch.nn.modules.batchnorm._BatchNorm) for layer in network.modules())
    images = torch.rand(3, 1, *([32] * (2 if size.count(",") == 1 else 3)))
    with torch.inference_mode():
        together, alone = network(images), network(images[:1])
    assert together.shape == (3, 2)
    assert torch.allclose(together[:1], alone, atol=1e-4)


@pytest.mark.parametrize("name", ["small-cnn", "resnet18"])
def test_a_job_starts_from_the_same_bits_whatever_happened_before(name):
    first = initial_model(job(name))
    torch.rand(7)
    again = initial_model(job(name))
    assert all(first[key].tobytes() == again[key].tobytes() for key in first)


def test_building_a_network_leaves_the_random_numbers_of_others_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    build_network(job())
    assert torch.equal(torch.rand(3), expected)


def test_the_small_network_is_small():
    assert 20_000 < sum(tensor.size for tensor in initial_model(job()).values()) < 30_000


def test_a_model_goes_in_and_out_unchanged_and_another_architecture_is_refused():
    network = build_network(job())
    model = {name: tensor + 1 for name, tensor in initial_model(job()).items()}
    load_tensors(network, model)
    assert all(np.array_equal(tensor, model[name]) for name, tensor in tensors_of(network).items())
    with pytest.raises(UpdateError, match="another architecture"):
        load_tensors(network, initial_model(job("resnet18")))
    assert all(np.array_equal(tensor, model[name]) for name, tensor in tensors_of(network).items())


def test_a_wrong_name_or_parameter_is_refused_in_one_line():
    with pytest.raises(JobError, match='did you mean "densenet121"'):
        build_network(job("densnet121"))
    with pytest.raises(JobError, match='no parameter "widht": did you mean "width"'):
        build_network(job(extra="[network.parameters]\nwidht = 3"))


@pytest.mark.parametrize("name", OF_IMAGES)
@pytest.mark.parametrize("setting", ["pretrained = true", "spatial_dims = 3", "num_classes = 7", "out_channels = 7"])
def test_a_job_can_neither_fetch_weights_nor_change_the_networks_shape(name, setting):
    with pytest.raises(JobError, match="takes no parameter"):
        build_network(job(name, extra=f"[network.parameters]\n{setting}"))


@pytest.mark.parametrize("width", ["0", "-2", "1.5", "true", '"wide"', "100000", "10000000000"])
def test_a_width_that_makes_no_network_is_refused_before_it_takes_memory(width):
    with pytest.raises(JobError) as refusal:
        build_network(job(extra=f"[network.parameters]\nwidth = {width}"))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("size", ["[8, 8]", "[16, 16]", "[16, 16, 16]"])
def test_images_too_small_for_a_network_are_refused_before_anything_is_spent(size):
    with pytest.raises(JobError, match=r'"data.size": densenet121 can\'t work on images of'):
        build_network(job("densenet121", size))


def test_no_network_has_a_layer_that_changes_its_input_in_place():
    for name in OF_IMAGES:
        assert not any(getattr(layer, "inplace", False) for layer in build_network(job(name, "[64, 64]")).modules())


def test_a_parameter_of_the_job_reaches_the_network():
    wide, usual = initial_model(job(extra="[network.parameters]\nwidth = 64")), initial_model(job())
    assert sum(tensor.size for tensor in wide.values()) > 3 * sum(tensor.size for tensor in usual.values())


@pytest.mark.parametrize("name", ["small-cnn", "resnet18"])
@pytest.mark.parametrize("size", ["[32, 32]", "[16, 16, 16]"])
def test_with_weight_standardisation_a_filters_scale_and_mean_have_no_effect(name, size):
    wanted = job(name, size, "[network.parameters]\nweight_standardisation = true")
    network, images = build_network(wanted).eval(), torch.rand(2, 1, *wanted.data.size)
    with torch.inference_mode():
        before = network(images)
        for layer in network.modules():
            if isinstance(layer, StandardisedConv2d | StandardisedConv3d):
                layer.weight.mul_(3).add_(0.7)
        assert torch.allclose(network(images), before, atol=1e-3)
        other = build_network(job(name, size)).eval()
        assert set(tensors_of(other)) == set(tensors_of(network))  # the same parameters, seen otherwise
        assert not torch.allclose(other(images), before, atol=1e-3)


def test_images_on_a_standard_scale_have_about_zero_mean_and_unit_scale_by_public_constants():
    wanted, seen = job(extra="").model_copy(update={"data": DataSection(collection="c", scale="standard")}), []
    network = build_network(wanted)
    network.network[0].register_forward_pre_hook(lambda _, images: seen.append(images[0]))
    network(torch.tensor([0.0, 0.5, 1.0]).repeat(1, 1, 64, 22)[..., :64])
    assert seen[0].unique().tolist() == [-2.0, 0.0, 2.0]


@pytest.mark.parametrize("name", OF_TABLES)
@pytest.mark.parametrize("count", [1, 3, 300])
def test_a_network_for_tables_takes_any_number_of_features_and_looks_at_each_row_alone(name, count):
    network = build_network(table_job(name, [f"f{number}" for number in range(count)])).eval()
    rows = torch.rand(5, count)
    with torch.inference_mode():
        together, alone = network(rows), network(rows[:1])
    assert together.shape == (5, 2)
    assert torch.allclose(together[:1], alone, atol=1e-6)


def test_logistic_regression_starts_as_torch_starts_a_linear_layer_with_the_jobs_seed():
    torch.manual_seed(42)
    layer = torch.nn.Linear(3, 2)
    found = initial_model(table_job(seed=42))
    assert [tensor.tobytes() for tensor in found.values()] == [
        tensor.detach().numpy().tobytes() for tensor in (layer.weight, layer.bias)
    ]


@pytest.mark.parametrize(
    ("setting", "tensors"), [("", 6), ("hidden = 7\ndepth = 1\ndropout = 0.5", 4), ("depth = 4", 10)]
)
def test_hidden_layers_are_as_many_and_as_wide_as_the_job_says(setting, tensors):
    found = initial_model(table_job("mlp", extra=f"[network.parameters]\n{setting}"))
    assert len(found) == tensors
    assert next(iter(found.values())).shape[0] == (7 if "hidden" in setting else 32)


@pytest.mark.parametrize(
    "setting",
    [
        "hidden = 0",
        "depth = 0",
        "dropout = 1.0",
        'hidden = "wide"',
        "hidden = 10000000000",
        "depth = 1000000000",
        "width = 3",
    ],
)
def test_parameters_that_make_no_network_are_refused_in_one_line(setting):
    with pytest.raises(JobError) as refusal:
        build_network(table_job("mlp", extra=f"[network.parameters]\n{setting}"))
    assert '"network.parameters"' in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_networks_of_images_and_of_tables_are_not_mixed_up():
    with pytest.raises(JobError, match=r"small-cnn is for images, and the job has a table .*choose one of linear, mlp"):
        build_network(table_job("small-cnn"))
    with pytest.raises(JobError, match="linear is for tables, and the job has images: choose one of small-cnn"):
        build_network(job("linear"))


@pytest.mark.parametrize(("extra", "said"), [
    ('augment = "light"', "augment is for images"),
    ('scale = "standard"', "means and deviations need one value for each feature"),
    ('scale = "standard"\nmeans = [1]\ndeviations = [1]', "3 are expected, got 1 and 1"),
    ('scale = "standard"\nmeans = [1, 2, 3]\ndeviations = [1, 0, 1]', "greater than 0"),
    ('scale = "site"\n[privacy]\nmechanism = "dp-sgd"', 'use "unit", or for tables "standard" with public means'),
])  # fmt: skip
def test_a_job_on_a_table_that_makes_no_sense_is_refused(extra, said):
    text = 'name = "j"\nsites = ["a"]\n[task]\nlabels = ["n", "p"]\n[data]\ncollection = "c"\n'
    with pytest.raises(JobError, match=said):
        parse_job(f'{text}features = ["a", "b", "c"]\n{extra}')
