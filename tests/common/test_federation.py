"""A federation is read, or refused in words that name the line, the key and what belongs there."""

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from common.errors import UsageError
from common.federation import parse_federation, read_federation

GOOD = """\
name = "chest-study"

[coordinator]
address = "wardround.example.org:9092"   # where sites connect
dns = ["Second.example.org"]
addresses = ["192.0.2.10", "2001:DB8::1"]

[[sites]]
name = "north"
title = "North Hospital"

[[sites]]
name = "south"
"""


def refusal(old, new):
    with pytest.raises(UsageError) as caught:
        parse_federation(GOOD.replace(old, new, 1), source="f.toml")
    return str(caught.value)


def with_address(address):
    return parse_federation(GOOD.replace("wardround.example.org:9092", address)).coordinator


def test_a_federation_is_read_with_its_coordinator_and_sites(tmp_path):
    (tmp_path / "f.toml").write_text(GOOD)
    found = read_federation(tmp_path / "f.toml")
    assert found.site_names == ("north", "south")
    assert (found.coordinator.host, found.coordinator.port) == ("wardround.example.org", 9092)


def test_the_certificate_is_for_the_host_and_what_is_listed_and_nothing_else():
    assert parse_federation(GOOD).coordinator.certificate_hosts == (
        "wardround.example.org",
        "second.example.org",
        "192.0.2.10",
        "2001:db8::1",
    )


@pytest.mark.parametrize("address", ["127.0.0.1:1", "localhost:1", "[::1]:1"])
def test_on_one_machine_the_certificate_is_for_every_spelling_of_it(address):
    assert {"localhost", "127.0.0.1", "::1"} < set(with_address(address).certificate_hosts)


def test_an_ipv6_address_is_written_in_brackets():
    coordinator = with_address("[2001:DB8::5]:9092")
    assert (coordinator.host, coordinator.port, coordinator.address) == ("2001:db8::5", 9092, "[2001:db8::5]:9092")
    assert 'write an IPv6 address in brackets, as in "[2001:db8::5]:9092"' in refusal(
        "wardround.example.org:9092", "2001:db8::5:9092"
    )


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("wardround.example.org", 'not "host:port"'),
        (":9092", 'not "host:port"'),
        ("host:0", "port from 1 to 65535"),
        ("host:65536", "port from 1 to 65535"),
        ("host:٣", "port from 1 to 65535"),
        ("https://host:9092", "no scheme"),
        ("0.0.0.0:9092", "name the one that sites connect to"),
        ("[::]:9092", "name the one that sites connect to"),
        ("192.0.2.300:9092", "no DNS name"),
        ("ward_round.example.org:9092", "no DNS name"),
    ],
)
def test_an_address_that_no_site_could_connect_to_is_refused(address, says):
    told = refusal("wardround.example.org:9092", address)
    assert told.startswith('f.toml:4: "coordinator.address": ')
    assert says in told


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("address =", "adress =", 'f.toml:4: unknown key "coordinator.adress"; did you mean "coordinator.address"'),
        ("title =", "titel =", 'f.toml:10: unknown key "sites.titel"; did you mean "sites.title"'),
        ("dns =", "title =", 'f.toml:5: unknown key "coordinator.title"; did you mean "sites.title"'),
        ("[[sites]]", "[[site]]", 'f.toml:8: unknown key "site"; did you mean "sites"'),
        ('"192.0.2.10"', '"host"', 'f.toml:6: "coordinator.addresses": "host" is no IPv4 or IPv6 address'),
        ('"Second.example.org"', '"192.0.2.1"', 'f.toml:5: "coordinator.dns": "192.0.2.1" is an address, not a name'),
        ('"Second.example.org"', '"*.example.org"', "no wildcard"),
        ('name = "south"', "name = 3", 'f.toml:13: "sites.name": input should be a valid string, got 3'),
        ('name = "south"', 'name = "so/uth"', 'f.toml:13: "sites.name": '),
        ('name = "south"', 'name = "North"', '"North" is there twice'),
        ('name = "south"', 'name = "Coordinator"', "that name is the coordinator's"),
        ('name = "chest-study"\n', "", 'f.toml: "name" is missing: the federation\'s name'),
        ("name", "name =", "not valid TOML"),
    ],
)
def test_a_fault_is_named_with_its_line_and_its_meaning(old, new, told):
    assert told in refusal(old, new)


def test_a_federation_needs_a_site():
    with pytest.raises(UsageError, match='"sites" is missing: one table'):
        parse_federation('name = "x"\n[coordinator]\naddress = "h:1"\n')


def test_every_fault_has_a_line_of_its_own():
    assert len(refusal('name = "north"\ntitle = ', 'nam = "north"\ntitle = 3 #').splitlines()) == 3


def test_a_file_that_can_not_be_read_is_refused(tmp_path):
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    for path in (tmp_path, tmp_path / "missing.toml", tmp_path / "binary.toml"):
        with pytest.raises(UsageError, match="the federation can't be read"):
            read_federation(path)


def test_a_site_can_be_added_once():
    grown = parse_federation(GOOD).with_site("west", title="West Hospital")
    assert grown.site_names == ("north", "south", "west")
    with pytest.raises(UsageError, match='"WEST" is there twice'):
        grown.with_site("WEST")


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@given(names=st.lists(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True), max_size=5), text=TEXT)
def test_what_is_written_reads_back_as_the_same(names, text):
    federation = parse_federation(GOOD)
    for name in names:
        if name.lower() not in {one.lower() for one in (*federation.site_names, "coordinator")}:
            federation = federation.with_site(name, title=text, contact=text)
    assert parse_federation(federation.to_toml()) == federation


@given(TEXT)
def test_no_address_ends_in_anything_but_a_federation_or_a_refusal(text):
    table = {"name": "x", "coordinator": {"address": text}, "sites": [{"name": "north"}]}
    told = ""
    try:
        port = parse_federation(tomli_w.dumps(table)).coordinator.port
    except UsageError as error:
        port, told = 1, str(error)
    assert 1 <= port <= 65535
    assert not told or '"coordinator.address"' in told
