"""`wardround kits ...`: what it prints, where, and with which exit code."""

import json
import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from certs.cli import app
from certs.enrol import enrol
from common.errors import KitError

PROJECT = Path(__file__).resolve().parents[2]


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def wardround(*arguments, folder, prefix=""):
    """Run the real command in a process of its own."""
    command = f'{prefix} exec "$0" -c "from common.cli import main; main()" "$@"'
    return subprocess.run(
        ["bash", "-c", command, sys.executable, *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture
def described(tmp_path, federation):
    path = tmp_path / "federation.toml"
    path.write_text(federation.to_toml())
    return path


def test_a_federation_from_creation_to_revocation_by_the_command_alone(described, tmp_path):
    told = wardround("kits", "create", described, folder=tmp_path)
    assert (told.returncode, told.stderr) == (0, "")
    assert "kits/sites/north: give it to north" in told.stdout
    told = wardround("site", "enrol", "kits/sites/north", folder=tmp_path)
    assert told.returncode == 0, told.stderr
    told = wardround("kits", "admit", "kits/sites/north/north.request.pem", folder=tmp_path)
    assert "kits/sites/north/north.crt: send it back to north" in told.stdout
    told = wardround(
        "site", "enrol", "kits/sites/north", "--certificate", "kits/sites/north/north.crt", folder=tmp_path
    )
    assert told.returncode == 0, told.stderr
    assert "revoked" in wardround("kits", "revoke", "north", folder=tmp_path).stdout
    told = wardround("kits", "list", "--json", folder=tmp_path)
    assert {row["name"]: row["status"] for row in json.loads(told.stdout)}["north"] == "revoked"


def test_a_revoked_site_comes_back_with_a_new_key_by_the_command_alone(kits, north, tmp_path):
    north_kit, request = north.folder, north.folder / "north.request.pem"
    assert wardround("kits", "revoke", "north", folder=tmp_path).returncode == 0
    told = wardround("kits", "admit", request, folder=tmp_path)
    assert (told.returncode, "wardround site enrol --new-key" in told.stderr) == (2, True)
    told = wardround("site", "enrol", north_kit, "--new-key", folder=tmp_path)
    assert told.returncode == 0, told.stderr
    told = wardround("kits", "admit", request, folder=tmp_path)
    assert f"copy this folder there: {Path('kits/coordinator/roster')}" in told.stdout
    told = wardround("site", "enrol", north_kit, "--certificate", request.with_name("north.crt"), folder=tmp_path)
    assert told.returncode == 0, told.stderr
    told = wardround("kits", "list", "--json", folder=tmp_path)
    assert {row["name"]: row["status"] for row in json.loads(told.stdout)}["north"] == "valid"


def test_bad_news_is_one_line_on_standard_error_with_exit_code_2(described, tmp_path, made):
    cases = [
        (("create", described, "--out", made), "exists already and is never overwritten"),
        (("create", "nowhere.toml"), "the federation can't be read: No such file"),
        (("admit", described, "--kits", made), "this is no PEM file, not a certificate request"),
        (("list", "--kits", "nowhere"), "no kits here"),
        (("renew", "north", "--kits", made), "not on the roster"),
    ]
    for arguments, says in cases:
        told = wardround("kits", *arguments, folder=tmp_path)
        assert told.returncode == 2, told
        assert told.stdout == ""
        assert says in told.stderr
        assert told.stderr.count("\n") == 1


def test_a_full_disk_is_one_line_with_exit_code_1_and_leaves_nothing(described, tmp_path):
    told = wardround("kits", "create", described, folder=tmp_path, prefix="ulimit -f 0;")
    assert told.returncode == 1
    assert told.stderr.startswith("wardround: ")
    assert "can't be written: File too large" in told.stderr
    assert told.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["federation.toml"]


def test_the_command_loads_no_torch_and_no_flower():
    look = "import sys, certs.cli, certs.enrol, certs.checks; print({'torch', 'monai', 'flwr'} & set(sys.modules))"
    told = subprocess.run([sys.executable, "-c", look], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "set()"


@pytest.mark.parametrize("name", ["create", "admit", "renew", "revoke", "add-site", "list"])
def test_every_command_shows_an_example(name):
    assert f"Example: wardround kits {name}" in run(name, "--help").stdout


def test_the_list_is_a_table_for_people_and_rows_for_scripts(kits, north):
    told = run("list", "--kits", kits)
    assert "north" in told.stdout
    assert "not admitted" in told.stdout
    rows = {row["name"]: row for row in json.loads(run("list", "--kits", kits, "--json").stdout)}
    assert rows["north"]["status"] == "valid"
    assert datetime.fromisoformat(rows["north"]["not_after"]).tzinfo
    assert rows["south"]["not_after"] is None


def test_a_certificate_that_ends_within_a_month_is_warned_of_on_standard_error(kits, give):
    told = run("admit", enrol(give("north")), "--kits", kits, "--days", 10)
    assert "warning: north's new certificate ends in" in told.stderr
    told = run("list", "--kits", kits, "--json")
    assert json.loads(told.stdout)
    assert "warning: north's certificate ends in 9 days" in told.stderr
    assert "wardround kits renew north" in told.stderr
    assert run("renew", "north", "--kits", kits).stderr == ""
    assert run("list", "--kits", kits).stderr == ""


def test_renewing_adding_and_revoking_say_what_to_do_next(kits, north):
    assert "coordinator is started again" in run("renew", "coordinator", "--kits", kits).stdout
    request = enrol(north, new_key=True)
    assert "send it back to north" in run("renew", "north", "--request", request, "--kits", kits).stdout
    assert "give it to west" in run("add-site", "west", "--title", "West Hospital", "--kits", kits).stdout
    assert "its certificate is kept as" in run("revoke", "north", "--kits", kits).stdout
    with pytest.raises(KitError):
        run("revoke", "north", "--kits", kits)
