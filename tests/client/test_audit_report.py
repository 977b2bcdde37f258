"""`wardround audit verify` and `export`: what was done, what it cost, and whether the record of it is whole."""

import dataclasses
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from client.app import parts_of
from client.audit_cli import export, verify
from client.papers import make_report
from client.policy import DEFAULT_POLICY
from client.privacy.ledger import Entry, Ledger
from client.record import note_policy, site_log
from client.releases import describe, record
from common.errors import UsageError
from common.kit import read_kit
from common.privacy import Spending, epsilon_of
from common.release import Accounting, Evaluation, Numbers, Operation, Training
from common.update import Answer, encode_answer

ROUND = Spending(4.0, 0.2, 10)
RUN = "chest|2026 <script>alert(1)</script>"


@pytest.fixture
def kit(kit_folder, write_kit):
    """A site that answered three private rounds of a run, and a person who denied a job."""
    (write_kit(kit_folder) / "policy.toml").write_text(DEFAULT_POLICY)
    log = site_log(kit_folder)
    ledger = Ledger(kit_folder / "ledger.sqlite", log)
    note_policy(log, kit_folder)
    for number in (1, 2, 3):
        entry = Entry("chest", RUN, "d" * 64, number, "patient", 1e-5, ROUND)
        spent = ledger.spend(entry, run_limit=9, life_limit=9)
        parts = {"update/tensors": b"x" * 1000, "eval.auc": b"0.8", "status": b"ok"}
        release = describe(
            parts, run=RUN, job_digest="d" * 64, round_number=number, kind="train", status="ok", epsilon=spent,
            delta=1e-5, to="coordinator.example:9092",
        )  # fmt: skip
        record(kit_folder, release)
    log.append("import", {"collection": "chest", "indexed": 1234, "unchanged": 0, "removed": 0, "refused": 77})
    log.append("decision", {"job": "e" * 64, "name": "j", "verdict": "denied", "by": "Dr. Noor", "note": "too | broad"})
    return kit_folder


def run(app, *arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_a_whole_record_is_told_with_its_span_and_the_ledger(kit):
    done = run(verify, "--kit", kit)
    assert done.exit_code == 0
    log_line, ledger_line = done.output.splitlines()
    assert re.match(
        r"north: 10 entries from 20\S+ to 20\S+: every one as it was written and signed; no witness", log_line
    )
    assert ledger_line == "north: the privacy ledger agrees with the audit log: 3 entries"


def test_a_site_that_has_done_nothing_yet_is_whole(kit_folder, write_kit):
    done = run(verify, "--kit", write_kit(kit_folder))
    assert (done.exit_code, done.output.splitlines()[0]) == (0, "north: the audit log has no entry yet")
    assert not list(kit_folder.glob("audit*"))
    assert "No message has left this site yet" in exported(kit_folder)["report.md"]


def test_each_fault_is_one_line_with_its_name_and_place(kit):
    path = kit / "audit.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[3] = lines[3].replace(b"ok", b"no")
    del lines[6]
    path.write_bytes(b"".join(lines))
    done = run(verify, "--kit", kit)
    assert done.exit_code == 1
    assert [line.split(": ")[:2] for line in done.output.splitlines()[:2]] == [
        ["audit log, line 4", "tampered"],
        ["audit log, line 7", "removed"],
    ]
    found = json.loads(run(verify, "--kit", kit, "--json").output)
    assert (found["ok"], [fault["name"] for fault in found["faults"]]) == (False, ["tampered", "removed"])


def test_a_ledger_that_was_deleted_is_named(kit):
    for path in kit.glob("ledger.sqlite*"):
        path.unlink()
    done = run(verify, "--kit", kit)
    assert done.exit_code == 1
    assert "ledger.sqlite: the privacy ledger has 0 entries, but the audit log audit.jsonl tells of 3" in done.output
    assert not (kit / "ledger.sqlite").exists()  # looking changes nothing


def test_both_put_back_together_are_noticed_with_the_head_that_was_kept(kit, tmp_path):
    exported(kit)
    witness = kit.parent / "report" / "head.json"
    assert "the witness agrees" in run(verify, "--kit", kit, "--witness", witness).output
    lines = (kit / "audit.jsonl").read_bytes().splitlines(keepends=True)
    (kit / "audit.jsonl").write_bytes(b"".join(lines[:-1]))
    assert run(verify, "--kit", kit).exit_code == 0
    done = run(verify, "--kit", kit, "--witness", witness)
    assert done.exit_code == 1
    fault = done.output.splitlines()[0]
    assert fault == "audit log, line 10: truncated: the log ends with entry 9, but entry 10 was witnessed"


@pytest.mark.parametrize("text", ["", "nonsense", "[]"])
def test_a_witness_that_is_none_is_told(kit, tmp_path, text):
    (tmp_path / "head.json").write_text(text)
    result = run(verify, "--kit", kit, "--witness", tmp_path / "head.json")
    assert isinstance(result.exception, UsageError)
    assert "head.json" in str(result.exception)


def exported(kit):
    out = kit.parent / "report"
    done = run(export, "--kit", kit, "--out", out)
    assert done.exit_code == 0, done.exception
    return {Path(line).name: Path(line).read_text() for line in done.output.splitlines()}


class Page(HTMLParser):
    """Collects the tags, what they refer to, and the text of a page; complains of tags that are not closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.references, self.words = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.references += [value for name, value in attributes if name in ("src", "href", "action")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_the_report_says_what_was_allowed_what_left_to_whom_and_what_it_cost(kit):
    report = make_report(read_kit(kit, "site"))
    life = epsilon_of([ROUND] * 3, 1e-5)
    (budget,) = report.budgets
    assert (budget.epsilon, budget.limit, budget.left) == (life, 10.0, 10.0 - life)
    (run_,) = report.runs
    assert [cost.epsilon for cost in run_.costs] == [life]
    assert (len(run_.messages), run_.receivers, report.bytes) == (3, ("coordinator.example:9092",), 3 * 1005)
    assert all(rule.meaning for rule in report.rules)
    assert all("not known" not in field.meaning for field in report.fields)
    for text in exported(kit).values():
        assert text.startswith("{") or all(
            word in text
            for word in (
                f"{life:.3f}",
                "coordinator.example:9092",
                "Dr. Noor",
                "min_patients",
                "update/tensors",
                "e" * 12,
            )
        )


def test_the_page_is_self_contained_well_formed_and_nothing_in_it_runs(kit):
    page = Page(exported(kit)["report.html"])
    assert page.open == []
    assert page.references == []
    assert "script" not in page.tags
    assert "svg" in page.tags
    assert any("<script>alert(1)</script>" in word for word in page.words)  # as text


def test_the_markdown_lets_no_name_become_markup(kit):
    text = exported(kit)["report.md"]
    assert "<script>" not in text
    assert "too \\| broad" in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert all(re.fullmatch(r"\|(?:(?:[^|\\]|\\.)*\|){2,8}", line) for line in tables)


def test_the_report_on_a_record_that_is_not_whole_says_so_first(kit):
    lines = (kit / "audit.jsonl").read_bytes().splitlines(keepends=True)
    (kit / "audit.jsonl").write_bytes(b"".join([*lines[:4], b"damage\n", *lines[4:]]))
    texts = exported(kit)
    assert sorted(texts) == ["report.html", "report.md"]  # no head of a log with faults
    assert all("The record is not whole" in text and "line 5: tampered" in text for text in texts.values())


def test_every_field_that_an_answer_can_have_is_explained(kit):
    told = Answer("north", "d", 1, "ok", version="1", device="CPU", tensors={"w": np.zeros(1, np.float32)})
    numbers = Numbers(Operation(1.0), Accounting(1.0), Training("noised", 1), Evaluation("noised", 1))
    left = parts_of(encode_answer(dataclasses.replace(told, numbers=numbers)))
    record(kit, describe(left, run="all", job_digest="", round_number=1, kind="train", status="ok", epsilon=None))
    explained = {field.name: field.meaning for field in make_report(read_kit(kit, "site")).fields}
    assert {"version", "device", "update/tensors"} <= set(left) <= set(explained)
    assert all("not known" not in meaning for meaning in explained.values())


def test_a_report_is_no_pdf_and_says_how_to_make_one(kit, tmp_path):
    result = run(export, "--kit", kit, "--out", tmp_path / "report.pdf")
    assert isinstance(result.exception, UsageError)
    assert "print" in str(result.exception)
    assert not (tmp_path / "report.pdf").exists()


@pytest.mark.parametrize("name", ["only.html", "only.md"])
def test_one_file_can_be_asked_for(kit, tmp_path, name):
    assert run(export, "--kit", kit, "--out", tmp_path / name).output == f"{tmp_path / name}\n"
    assert (tmp_path / name).stat().st_mode & 0o777 == 0o600


def test_the_commands_are_found_and_load_neither_torch_nor_the_other_side(kit):
    loaded = "import sys; from common.cli import main\ntry:\n main(['audit', 'verify', '--kit', sys.argv[1]])\n"
    loaded += "except SystemExit as end:\n print(end.code, sorted({'torch', 'monai', 'flwr'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", loaded, str(kit)], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr
