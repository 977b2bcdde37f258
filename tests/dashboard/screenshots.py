"""Screenshots of every page, light and dark, of a real federation: what `wardround demo` leaves, started again.

Run by hand: python tests/dashboard/screenshots.py --demo FOLDER [--out server/docs/dashboard] [--only NAME ...]
FOLDER is what `wardround demo --keep FOLDER` left; without one there the demo is run first. Then its coordinator, its
sites and the first hospital's page run again, that hospital asks a person before it takes part, and a second run is
asked for. Needs Debian's chromium. Pictures have 64 colours, so that all of them together stay small.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import tomlkit
from PIL import Image
from playwright.sync_api import Browser, Page

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

from live_federation import PASSWORD, PATIENCE, Living, answers, chromium, enter, until  # noqa: E402

from client.policy import FILE_NAME, change_policy  # noqa: E402
from server.people import People  # noqa: E402
from simulations.federation import LocalFederation, free_port  # noqa: E402
from simulations.processes import Crew, wardround_command  # noqa: E402

WIDTH, HEIGHT, TALLEST, COLOURS = 1280, 800, 1800, 64
PEOPLE = {"anna": ("admin", "Anna Berg"), "cora": ("coordinator", "Cora Lind"), "vera": ("viewer", "Vera Holm")}
SECOND = "chest-second-reading"


def kept_demo(folder: Path) -> LocalFederation:
    """Return the federation that the demo left in `folder`; run the demo when there is none."""
    if not (folder / "federation.toml").exists():
        subprocess.run([*wardround_command(), "demo", "--keep", str(folder), "--no-dashboard"], check=True)
    made = tomllib.loads((folder / "federation.toml").read_text())
    return LocalFederation(folder, tuple(site["name"] for site in made["sites"]), made["coordinator"]["address"])


@contextmanager
def alive(federation: LocalFederation) -> Iterator[Living]:
    """Start its processes; its people are added if they are not there yet."""
    people = People(federation.registry.database)
    known = {person.name for person in people.list()}
    for name, (role, display) in PEOPLE.items():
        if name not in known:
            people.add(name, role, by="terminal:root", password=PASSWORD, display=display)
    asking = federation.site_kit(federation.sites[0])
    policy = asking / FILE_NAME
    policy.write_text(change_policy(policy.read_text(), {"approval": "each-job"}, str(policy)))
    url, port, link = f"https://127.0.0.1:{free_port()}", free_port(), federation.folder / "link"
    link.unlink(missing_ok=True)
    with Crew(federation.logs, federation.environment | {"OMP_NUM_THREADS": "1"}) as crew:
        command = ["coordinator", "start", str(federation.coordinator_kit), "--listen", federation.address]
        coordinator = crew.start("coordinator", [*wardround_command(), *command, "--no-dashboard"])
        command = ["dashboard", str(federation.coordinator_kit), "--listen", url.removeprefix("https://")]
        crew.start("dashboard", [*wardround_command(), *command])
        for site in federation.sites:
            crew.start(f"site {site}", [*wardround_command(), "site", "start", str(federation.site_kit(site))])
        page = ["site", "dashboard", "--kit", str(asking), "--listen", f"127.0.0.1:{port}", "--link-file", str(link)]
        crew.start("page", [*wardround_command(), *page])
        authority = str(federation.coordinator_kit / "ca.crt")
        until(lambda: answers(f"{url}/health", authority))
        until(lambda: link.exists() and answers(f"http://127.0.0.1:{port}/", authority))
        yield Living(federation, crew, url, link.read_text().strip(), coordinator)


def second_run(federation: LocalFederation) -> str:
    """Ask for another run, which waits for a person, unless one does already; return its name."""
    asked = [run for run in federation.registry.list_runs() if run.job_name == SECOND]
    if asked and asked[0].status in ("queued", "running"):
        return asked[0].name
    if asked:
        return run(federation, "--resume", asked[0].name)
    table = tomlkit.parse(federation.job.read_text())
    table["name"], table["description"] = SECOND, "the same images at a sixth of the budget"
    table["aggregation"]["rounds"], table["privacy"]["epsilon"] = 60, 1.5
    job = federation.folder / "second.toml"
    job.write_text(tomlkit.dumps(table))
    return run(federation, str(job))


def run(federation: LocalFederation, *words: str) -> str:
    """Ask for a run; return its name."""
    command = [*wardround_command(), "run", *words, "--kit", str(federation.coordinator_kit)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def shoot(page: Page, out: Path, name: str) -> None:
    """Write a picture of the whole page in each theme, once what it shows has come."""
    page.get_by_role("heading", level=1).first.wait_for()
    page.locator("[aria-busy=true]").first.wait_for(state="detached")
    page.wait_for_timeout(1500)  # charts and fonts
    draw(page, out, f"{name}-light")
    page.emulate_media(color_scheme="dark")
    page.wait_for_function("document.documentElement.dataset.theme === 'dark'")
    draw(page, out, f"{name}-dark")
    page.emulate_media(color_scheme="light")


def draw(page: Page, out: Path, name: str) -> None:
    """Write a picture of the whole page as it is."""
    drawn = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
    drawn = drawn.crop((0, 0, drawn.width, min(drawn.height, TALLEST)))
    file = out / f"{name}.png"
    drawn.quantize(COLOURS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(file, optimize=True)
    print(f"{file}  {drawn.width} x {drawn.height}  {file.stat().st_size / 1000:.0f} kB", flush=True)


def signed_in(browser: Browser, alive: Living, out: Path, wanted: list[str]) -> Page:
    """Return a window in which the admin has signed in; the sign-in page is shot on the way."""
    context = browser.new_context(
        ignore_https_errors=True, viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light"
    )
    page = context.new_page()
    page.set_default_timeout(1000 * PATIENCE)
    page.goto(alive.url)
    if not wanted or "sign-in" in wanted:
        shoot(page, out, "sign-in")
    enter(page, "anna", PASSWORD)
    page.get_by_role("heading", name="Federation", level=1).wait_for()
    return page


def planned(page: Page) -> None:
    """Fill the form in as far as its plan."""
    page.get_by_role("textbox", name="Name", exact=True).fill("chest-third")
    page.get_by_role("textbox", name="Labels, with commas").fill("normal, pneumonia")
    page.get_by_text("The job is right").wait_for()
    page.get_by_role("button", name="Show the privacy plan").click()
    page.get_by_role("table", name="The whole run").wait_for()


def shoot_all(alive: Living, browser: Browser, out: Path, wanted: list[str]) -> None:
    """Shoot every page."""
    first = next(run.name for run in reversed(alive.federation.registry.list_runs()) if run.status == "completed")
    second = second_run(alive.federation)
    page = signed_in(browser, alive, out, wanted)
    page.goto(f"{alive.url}/models")
    model = page.get_by_role("link", name=", best").first.get_attribute("href")
    pages = {
        "federation": "/", "runs": "/runs", "run": f"/runs/{first}", "compare": f"/compare?runs={first}&runs={second}",
        "new-job": "/new", "models": "/models", "model": str(model), "people": "/people", "audit": "/audit",
        "api": "/api/v1/docs",
    }  # fmt: skip
    for name, path in pages.items():
        if not wanted or name in wanted:
            page.goto(alive.url + path)
            if name == "new-job":
                planned(page)
            shoot(page, out, name)
    hospital = alive.link.split("/?")[0]
    page.goto(alive.link)
    own = {f"hospital-{name}": f"/{name}" for name in ("data", "jobs", "budget", "releases", "audit", "policy")}
    for name, path in {"hospital": "/", **own, "hospital-job": "/jobs"}.items():
        if not wanted or name in wanted:
            page.goto(hospital + path)
            if name == "hospital-job":
                page.get_by_role("link", name=SECOND).first.click()
                page.get_by_role("heading", name="Decide").wait_for()
            shoot(page, out, name)
    page.context.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, required=True, help="the folder that the demo left, or a new one")
    parser.add_argument("--out", type=Path, default=Path("server/docs/dashboard"))
    parser.add_argument("--only", nargs="*", default=[], help="pages, by name")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with chromium() as browser, alive(kept_demo(options.demo)) as living:
        shoot_all(living, browser, options.out, options.only)


if __name__ == "__main__":
    main()
