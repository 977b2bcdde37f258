"""Slips of every day at the real command: each ends in one line that helps, and a script can read what it asked for."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from certs.admission import admit, revoke
from certs.enrol import accept, enrol
from certs.kits import create_kits
from common.federation import parse_federation
from common.kit import read_kit

WARDROUND = Path(sys.executable).parent / "wardround"
FEDERATION = """name = "f"
[coordinator]
address = "127.0.0.1:9"
[[sites]]
name = "north"
[[sites]]
name = "south"
"""
JOB = """name = "j"
sites = ["north"]
[task]
labels = ["dark", "bright"]
[data]
collection = "squares"
size = [16, 16]
"""


def wardround(*arguments, **settings):
    settings = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "timeout": 600, **settings}
    return subprocess.run([str(WARDROUND), *map(str, arguments)], check=False, **settings)


def assert_one_line(done, code, *words):
    assert done.returncode == code, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("wardround: ")
    for word in words:
        assert word in line


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    kits = create_kits(parse_federation(FEDERATION), tmp_path_factory.mktemp("usage") / "kits")
    north = read_kit(kits / "sites" / "north", "site")
    accept(north, admit(kits, enrol(north)))
    return kits


@pytest.fixture
def kits(made, tmp_path):
    return shutil.copytree(made, tmp_path / "kits")


@pytest.fixture
def north(kits):
    return kits / "sites" / "north"


@pytest.fixture
def job(tmp_path):
    path = tmp_path / "job.toml"
    path.write_text(JOB)
    return path


def test_a_job_saved_by_an_editor_that_puts_a_mark_first_is_the_same_job(job, tmp_path):
    marked = tmp_path / "marked.toml"
    marked.write_text(JOB, encoding="utf-8-sig")
    digests = [json.loads(wardround("job", "check", path, "--json").stdout)["digest"] for path in (job, marked)]
    assert digests[0] == digests[1]


def test_a_job_in_another_encoding_says_which_to_save_it_in(job):
    job.write_text(JOB, encoding="utf-16")
    assert_one_line(wardround("job", "check", job), 2, "job.toml", "save it as UTF-8")


def test_a_wrong_size_is_told_once_not_once_for_each_number_and_once_for_all(job):
    job.write_text(JOB.replace("[16, 16]", "[160000, 160000]"))
    assert_one_line(wardround("job", "check", job), 2, "job.toml:7", "data.size", "4096")


def test_job_check_finds_a_network_that_does_not_exist(job):
    job.write_text(JOB + '[network]\nname = "densenet"\n')
    assert_one_line(wardround("job", "check", job), 2, "densenet121")


def test_a_job_for_an_unknown_site_names_the_nearest(kits, job):
    job.write_text(JOB.replace("north", "nroth"))
    assert_one_line(wardround("run", job, "--kit", kits / "coordinator"), 2, 'no site "nroth"', '"north"')


@pytest.mark.parametrize(
    "arguments", [("runs", "show", "nosuch"), ("runs", "stop", "nosuch"), ("run", "--resume", "x")]
)
def test_an_unknown_run_says_where_the_runs_are(kits, arguments):
    assert_one_line(wardround(*arguments, "--kit", kits / "coordinator"), 2, "there is no run", "wardround runs")


@pytest.mark.parametrize("text", ["nowhere", "127.0.0.1:99999", "127.0.0.1:", ":9092"])
def test_listening_where_there_is_no_such_port_is_a_wrong_argument(kits, text):
    done = wardround("coordinator", "start", kits / "coordinator", "--listen", text)
    assert_one_line(done, 2, "--listen", text, "HOST:PORT")


@pytest.mark.parametrize("role", ["coordinator", "site"])
def test_the_kit_of_the_other_role_is_refused(kits, north, role):
    folder = north if role == "coordinator" else kits / "coordinator"
    done = wardround(role, "start", folder)
    assert_one_line(done, 2, str(folder), f"not of a {role}")


@pytest.mark.parametrize("address", ["127.0.0.1:x", "nowhere", "127.0.0.1:0"])
def test_a_kit_with_an_address_that_is_none_says_so(north, address):
    kit = north / "kit.toml"
    kit.write_text(kit.read_text().replace("127.0.0.1:9", address))
    assert_one_line(wardround("site", "check", "--kit", north), 2, "kit.toml", address, "host:port")


def test_a_site_that_never_enrolled_is_told_to_enrol(kits):
    south = kits / "sites" / "south"
    assert_one_line(wardround("site", "start", south), 2, "no certificate yet", f"wardround site enrol {south}")
    enrol(read_kit(south, "site"))
    assert_one_line(wardround("site", "start", south), 2, "south.request.pem", "--certificate south.crt")


def test_enrolling_twice_overwrites_nothing(north):
    before = (north / "site.key").read_bytes()
    assert_one_line(wardround("site", "enrol", north), 2, "site.key", "never overwritten")
    assert (north / "site.key").read_bytes() == before


def test_a_revoked_site_comes_back_with_a_new_key_and_only_so(kits, north):
    revoke(kits, "north")
    request = north / "north.request.pem"
    assert_one_line(wardround("kits", "admit", request, "--kits", kits), 2, "revoked", "--new-key")
    assert wardround("site", "enrol", north, "--new-key").returncode == 0
    assert wardround("kits", "admit", request, "--kits", kits).returncode == 0
    assert wardround("site", "enrol", north, "--certificate", north / "north.crt").returncode == 0
    assert not (north / "site.next.key").exists()
    assert_one_line(wardround("site", "enrol", north, "--new-key", "--certificate", request), 2, "one at a time")


def test_site_check_without_a_coordinator_names_the_cause_once_and_blames_nothing_else(north):
    done = wardround("site", "check", "--kit", north, "--json")
    found = {finding["what"]: finding for finding in json.loads(done.stdout)}
    assert done.returncode == 1
    assert "can't be reached" in found["coordinator"]["detail"]
    assert found["admission"]["detail"] == "not known yet"
    assert "enrol" not in found["admission"]["remedy"]
    assert found["clock"]["ok"]


def test_a_mistyped_policy_is_told_with_its_line_and_the_nearest_key(north):
    (north / "policy.toml").write_text('collections = ["*"]\nmax_epsilon_per_rum = 3\n')
    found = {line["what"]: line for line in json.loads(wardround("site", "check", "--kit", north, "--json").stdout)}
    assert 'policy.toml:2: unknown key "max_epsilon_per_rum"' in found["policy"]["detail"]
    assert '"max_epsilon_per_run"' in found["policy"]["detail"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("file,label\n1.png,dårk\n".encode("latin-1"), "CSV (UTF-8)"),
        ("file,label\n1.png,dark\n".encode("utf-16"), "CSV (UTF-8)"),
        (b"", 'no column "label"'),
        (b'file,label\n1.png,"dark\n', "not valid CSV"),
        (b"file,label\n1.png,dark\n1.png,bright\n", "contradicts line 2"),
    ],
)
def test_a_label_file_that_no_one_can_read_is_told_and_nothing_is_indexed(north, tmp_path, content, says):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.png").write_bytes(b"no image")
    labels = tmp_path / "labels.csv"
    labels.write_bytes(content)
    done = wardround("site", "import", tmp_path / "images", "--collection", "x", "--labels", labels, "--kit", north)
    assert_one_line(done, 3, "labels.csv", says)
    assert json.loads(wardround("site", "show", "--json", "--kit", north).stdout) == {}


def test_an_empty_folder_asks_whether_it_is_mounted(north, tmp_path):
    (tmp_path / "images").mkdir()
    done = wardround("site", "import", tmp_path / "images", "--collection", "x", "--kit", north)
    assert_one_line(done, 3, "images", "is it mounted?")


def test_a_damaged_audit_log_is_told(north):
    (north / "audit.jsonl").write_bytes(b"\xff\xfe\n")
    assert_one_line(wardround("site", "releases", "--kit", north), 3, "audit.jsonl:1", "damaged")
    (north / "audit.jsonl").unlink()
    (north / "audit.jsonl").mkdir()
    assert_one_line(wardround("site", "releases", "--kit", north), 3, "audit.jsonl", "can't be read")


def test_a_disk_that_is_full_under_the_output_is_told_in_one_line():
    with Path("/dev/full").open("w") as full:
        done = wardround("job", "keys", stdout=full)
    assert_one_line(done, 1, "No space left on device")


def test_a_reader_that_has_seen_enough_is_no_error_to_read_about():
    reader, writer = os.pipe()
    os.close(reader)
    done = wardround("job", "keys", "--markdown", stdout=writer)
    os.close(writer)
    assert done.stderr == ""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_of_few_letters_still_gets_its_table(encoding):
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "COLUMNS": "60"}
    done = wardround("job", "keys", env=environment, encoding=encoding)
    assert (done.returncode, done.stderr) == (0, "")
    assert "aggregation" in done.stdout


def test_what_scripts_ask_for_is_json_and_nothing_else(kits, north, job):
    coordinator = kits / "coordinator"
    commands = [
        ("job", "check", job),
        ("kits", "list", "--kits", kits),
        ("site", "show", "--kit", north),
        ("site", "releases", "--kit", north),
        ("site", "check", "--kit", north),
        ("run", job, "--kit", coordinator),
        ("runs", "--kit", coordinator),
        ("runs", "show", "j", "--kit", coordinator),
        ("sites", "--kit", coordinator),
    ]
    for command in commands:
        json.loads(wardround(*command, "--json").stdout)


def interrupted(*arguments, until, **settings):
    """Press Ctrl-C once `until` stands on standard error; return what the command left."""
    command = [str(WARDROUND), *map(str, arguments)]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **settings)
    seen = ""
    while until not in seen and (line := running.stderr.readline()):
        seen += line
    running.send_signal(signal.SIGINT)
    out, rest = running.communicate(timeout=300)
    return running.returncode, out, seen + rest


def test_ctrl_c_on_a_run_that_is_followed_as_json_leaves_json_alone(kits, job):
    code, out, errors = interrupted(
        "run", job, "--kit", kits / "coordinator", "--follow", "--json", until="is not running"
    )
    assert code == 130
    assert "Traceback" not in errors
    assert json.loads(out)["run"].startswith("j-")


@pytest.mark.slow
def test_a_service_logs_whole_lines_refuses_a_second_one_and_ends_at_ctrl_c(north):
    command = [str(WARDROUND), "site", "start", str(north), "--device", "cpu"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as first:
        lines = [first.stderr.readline() for _ in range(2)]
        second = wardround("site", "start", north)
        first.send_signal(signal.SIGINT)
        _, rest = first.communicate(timeout=300)
    assert "site north of federation f on cpu" in lines[0]
    assert lines[1].rstrip().endswith("(connection refused); trying again until it works")  # not folded to 80 columns
    assert_one_line(second, 2, str(north), "runs already", str(first.pid))
    assert (first.returncode, "Traceback" in rest) == (0, False)
