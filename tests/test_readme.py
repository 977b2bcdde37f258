"""The README says what the program does: every command and every key of a job stands in it, and its job is valid."""

import re
import tomllib
from pathlib import Path

import pytest
from typer.main import get_command

from common.architectures import NETWORKS
from common.cli import COMMANDS
from common.job import key_table, parse_job
from common.strategies import parameters_of
from common.tasks.parameters import PARAMETERS as TASK_PARAMETERS

PROJECT = Path(__file__).resolve().parent.parent
README = (PROJECT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```toml\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("key", [row[0] for row in key_table()])
def test_every_key_of_a_job_is_in_the_readme_with_its_default_and_meaning(key):
    _, default, meaning = next(row for row in key_table() if row[0] == key)
    assert f"| `{key}` | {default and f'`{default}`'} | {meaning} |" in README


def test_the_job_in_the_readme_is_a_valid_job():
    (job,) = [block for block in BLOCKS if "[aggregation]" in block]
    assert parse_job(job, source="README.md").private


def test_the_federation_in_the_readme_is_a_valid_federation(tmp_path):
    from common.federation import read_federation

    (text,) = [block for block in BLOCKS if "[coordinator]" in block]
    (tmp_path / "federation.toml").write_text(text)
    assert [site.name for site in read_federation(tmp_path / "federation.toml").sites] == ["north", "south"]


def test_the_study_in_the_readme_is_a_valid_study(tmp_path):
    from simulations.scenario import read_scenario

    (text,) = [block for block in BLOCKS if "[[arms]]" in block]
    (tmp_path / "study.toml").write_text(text)
    assert len(read_scenario(tmp_path / "study.toml").scenario.arms) == 2


def test_the_openid_settings_in_the_readme_are_valid(tmp_path):
    from common.kit import Kit
    from server.dashboard.settings import FILE_NAME, read_settings

    (text,) = [block for block in BLOCKS if "[openid]" in block]
    (tmp_path / FILE_NAME).write_text(text)
    kit = Kit(tmp_path, "coordinator", "coordinator", "chest-study", "0", "localhost:9092")
    assert read_settings(kit).openid.roles["it"] == "admin"


def _command_lines(name: str) -> list[str]:
    module, attribute = COMMANDS[name][0].split(":")
    command = get_command(getattr(__import__(module, fromlist=[attribute]), attribute))
    inner = getattr(command, "commands", {})
    return [f"{name} {sub}" for sub in inner] or [name]


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_is_in_the_readme(name):
    missing = [line for line in _command_lines(name) if not re.search(rf"wardround {line}\b", README)]
    assert not missing


def test_whatever_a_package_reads_is_installed_with_it():
    given = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    named = {path for package, patterns in given.items() for one in patterns for path in (PROJECT / package).glob(one)}
    there = {path for package in given for path in (PROJECT / package).rglob("*") if path.is_file()}
    code = {path for path in there if path.suffix in (".py", ".pyc") or "docs" in path.parts}
    assert there - code == {path for path in named if path.is_file()} - code


def test_flowers_bundle_is_told_to_hold_only_code():
    settings = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    assert all(pattern == "LICENSE" or pattern.endswith("/**/*.py") for pattern in settings["fab-include"])


@pytest.mark.parametrize("task", list(TASK_PARAMETERS))
def test_every_task_is_in_the_readme_with_its_parameters(task):
    parameters = ", ".join(f"{name} = {default}" for name, default, _ in parameters_of(TASK_PARAMETERS[task]))
    assert f"| `{task}` | {TASK_PARAMETERS[task].__doc__} | {parameters} |" in README


@pytest.mark.parametrize("network", list(NETWORKS))
def test_every_network_is_named_in_the_readme(network):
    assert f"`{network}`" in README
