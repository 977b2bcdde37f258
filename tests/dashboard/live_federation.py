"""A federation of processes with its dashboard and one hospital's page, and a real browser to look at them with."""

from __future__ import annotations

import shutil
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from client.intake.importer import import_folder
from client.policy import FILE_NAME, change_policy
from server.people import People
from server.roles import ROLES
from simulations.federation import LocalFederation, create_federation, free_port
from simulations.hospitals import make_hospitals, write_hospital
from simulations.processes import Crew, Member, wardround_command

PASSWORD = "correct horse battery staple"
SITES = ("northfield", "eastbrook")
PATIENTS = 60
COLLECTION = "chest"
PATIENCE = 240.0
"""Seconds that anything may take on a machine that does other work too."""


@dataclass
class Living:
    """A federation whose processes are alive: `url` is the dashboard's, `link` opens the first hospital's page."""

    federation: LocalFederation
    crew: Crew
    url: str
    link: str
    coordinator: Member

    @property
    def people(self) -> People:
        return People(self.federation.registry.database)

    def restart_coordinator(self, meanwhile: Callable[[], object] = lambda: None) -> None:
        """End the coordinator, and with it the dashboard, as an administrator would; then start both again."""
        self.coordinator.process.terminate()
        self.coordinator.process.wait(PATIENCE)
        self.crew._members.remove(self.coordinator)  # the crew takes an ended member for a fault
        meanwhile()
        self.coordinator = start_coordinator(self.crew, self.federation, self.url)


def start_coordinator(crew: Crew, federation: LocalFederation, url: str) -> Member:
    kit, address = str(federation.coordinator_kit), url.removeprefix("https://")
    options = ["--listen", federation.address, "--dashboard", address]
    return crew.start("coordinator", [*wardround_command(), "coordinator", "start", kit, *options])


@contextmanager
def living(folder: Path) -> Iterator[Living]:
    """Make the federation and start its processes; the first hospital wants a person to approve each job."""
    federation = create_federation(folder / "federation", SITES, collection=COLLECTION, private=True)
    for hospital in make_hospitals(len(SITES)):
        labels = write_hospital(replace(hospital, patients=PATIENTS), federation.data(hospital.name), 0)
        kit = federation.site_kit(hospital.name)
        import_folder(kit, COLLECTION, federation.data(hospital.name), labels)
    policy = federation.site_kit(SITES[0]) / FILE_NAME
    policy.write_text(change_policy(policy.read_text(), {"approval": "each-job"}, str(policy)))
    people = People(federation.registry.database)
    for role in ROLES:
        people.add(role, role, by="test", password=PASSWORD)
    url, port = f"https://127.0.0.1:{free_port()}", free_port()
    environment = federation.environment | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with Crew(federation.logs, environment) as crew:
        coordinator = start_coordinator(crew, federation, url)
        for site in SITES:
            crew.start(f"site {site}", [*wardround_command(), "site", "start", str(federation.site_kit(site))])
        link = folder / "link"
        page = ["site", "dashboard", "--kit", str(federation.site_kit(SITES[0])), "--listen", f"127.0.0.1:{port}"]
        crew.start("page", [*wardround_command(), *page, "--link-file", str(link)])
        authority = str(federation.coordinator_kit / "ca.crt")
        until(lambda: answers(f"{url}/health", authority))
        until(lambda: link.exists() and answers(f"http://127.0.0.1:{port}/", authority))
        yield Living(federation, crew, url, link.read_text().strip(), coordinator)


def answers(url: str, authority: str) -> bool:
    """Whether a server is there, with a certificate of the federation's own authority if it speaks HTTPS."""
    context = ssl.create_default_context(cafile=authority)
    try:
        return httpx.get(url, verify=context).status_code < 500
    except httpx.HTTPError:
        return False


def until(condition: Callable[[], bool], seconds: float = 3 * PATIENCE) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.2)


@contextmanager
def chromium() -> Iterator[Browser]:
    """Return a browser; skip the test where there is none."""
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next((found for name in names if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip("no chromium on this machine: install your system's package to run the browser tests")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


def signed_in(browser: Browser, url: str, name: str, *, dark: bool = False) -> tuple[BrowserContext, Page]:
    """Return a browser window of its own in which `name` has signed in by the form."""
    # That the certificate is the federation's is checked by `answers`; the browser does not know its authority.
    scheme = "dark" if dark else "light"
    context = browser.new_context(
        ignore_https_errors=True, viewport={"width": 1280, "height": 800}, color_scheme=scheme
    )
    page = context.new_page()
    page.set_default_timeout(1000 * PATIENCE)
    page.goto(url)
    enter(page, name, PASSWORD)
    page.get_by_role("heading", name="Federation", level=1).wait_for()
    return context, page


def enter(page: Page, name: str, password: str) -> None:
    page.get_by_role("textbox", name="Name").fill(name)
    page.get_by_role("textbox", name="Password").fill(password)
    page.get_by_role("button", name="Sign in").click()
