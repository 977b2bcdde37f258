"""What people do with the dashboard and the hospital's page, in a real browser, over a federation of processes."""

from __future__ import annotations

import re
import ssl
import time

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from live_federation import COLLECTION, PASSWORD, PATIENCE, SITES, chromium, enter, living, signed_in
from playwright.sync_api import expect

from server.people import People

pytestmark = pytest.mark.slow
expect.set_options(timeout=1000 * PATIENCE)


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def ward(browser, tmp_path_factory):
    with living(tmp_path_factory.mktemp("ward")) as alive:
        yield alive


@pytest.fixture(scope="module")
def trained(ward, browser):
    """The name of the run that the first test starts, approves and follows, as a person would: see there."""
    return play(ward, browser)


def write_job(page, name: str, rounds: int) -> None:
    page.get_by_role("textbox", name="Name", exact=True).fill(name)
    for site in SITES:
        page.get_by_role("checkbox", name=site).check()
    page.get_by_role("textbox", name="Labels, with commas").fill("normal, pneumonia")
    page.get_by_role("textbox", name="Collection", exact=True).fill(COLLECTION)
    page.get_by_role("textbox", name="Rounds", exact=True).fill(str(rounds))
    page.get_by_role("combobox", name="Mechanism").select_option("dp-sgd")
    page.get_by_role("textbox", name="Epsilon of the run").fill("8")


def play(ward, browser) -> str:
    context, page = signed_in(browser, ward.url, "coordinator")
    page.get_by_role("link", name="New job").click()
    page.get_by_role("textbox", name="Epsilon of the run").fill("many")
    expect(page.get_by_text(re.compile("privacy.epsilon.*number"))).to_be_visible()
    write_job(page, "chest-study", 12)
    expect(page.get_by_text(re.compile("The job is right"))).to_be_visible()
    text = page.get_by_role("textbox", name=re.compile("The same as TOML")).input_value()
    assert f'collection = "{COLLECTION}"' in text
    assert page.get_by_role("button", name="Start the run").is_disabled()
    page.get_by_role("button", name="Show the privacy plan").click()
    expect(page.get_by_role("table", name=re.compile("whole run"))).to_be_visible()
    page.get_by_role("button", name="Start the run").click()
    page.get_by_role("button", name="Start it").click()
    page.get_by_role("heading", name=re.compile("Run chest-study-")).wait_for()
    run = page.url.rsplit("/", 1)[1]
    page.evaluate("window.sameDocument = true")

    hospital = context.new_page()
    hospital.goto(ward.link)
    hospital.get_by_role("link", name="Jobs", exact=True).click()
    hospital.get_by_role("link", name="chest-study").click()
    expect(hospital.get_by_text("At most epsilon 8".lower(), exact=False)).to_be_visible()
    hospital.get_by_role("button", name="Approve").click()
    expect(hospital.get_by_text("write your name first")).to_be_visible()
    hospital.get_by_label(re.compile("Your name")).fill("Dr. Ada Byron")
    hospital.get_by_role("button", name="Approve").first.click()
    hospital.get_by_role("dialog").get_by_role("button", name="Approve").click()
    expect(hospital.get_by_text(re.compile("Approved by Dr. Ada Byron"))).to_be_visible()

    seen = set()
    end = time.monotonic() + PATIENCE
    while "completed" not in seen and time.monotonic() < end:
        text = page.get_by_role("main").inner_text()
        seen |= set(re.findall(r"\b(\d+) of 12\b", text)) | set(re.findall(r"\bcompleted\b", text))
        time.sleep(0.2)
    assert "completed" in seen, seen
    assert seen & {str(number) for number in range(1, 12)}, seen  # it was watched, and not only found at its end
    assert page.evaluate("window.sameDocument")
    context.close()
    return run


def test_a_job_is_written_planned_started_approved_at_the_hospital_and_watched_to_its_end(trained, ward):
    assert ward.federation.registry.summary(trained).status == "completed"


def test_a_model_is_approved_and_another_browser_sees_it_at_once(trained, ward, browser):
    one, page = signed_in(browser, ward.url, "coordinator")
    two, other = signed_in(browser, ward.url, "viewer")
    for window in (page, other):
        window.get_by_role("link", name="Models").click()
    expect(other.get_by_role("table")).to_contain_text("candidate")
    page.get_by_role("link", name="chest-study, best").click()
    page.get_by_label(re.compile("Why")).fill("reviewed by two of us")
    page.get_by_role("button", name="Approve", exact=True).click()
    page.get_by_role("dialog").get_by_role("button", name="Approve", exact=True).click()
    expect(page.get_by_role("table", name=re.compile("Decisions"))).to_contain_text("reviewed by two of us")
    expect(other.get_by_role("table")).to_contain_text("approved")
    other.get_by_role("link", name="chest-study, best").click()
    expect(other.get_by_role("heading", name="Provenance")).to_be_visible()
    assert other.get_by_role("button", name="Approve", exact=True).count() == 0
    one.close()
    two.close()


def test_a_wrong_password_is_told_and_lets_nobody_in(ward, browser):
    context = browser.new_context(ignore_https_errors=True)
    page = context.new_page()
    page.goto(f"{ward.url}/runs")
    enter(page, "viewer", "not this one, surely")
    expect(page.get_by_role("alert")).to_contain_text("wrong")
    enter(page, "viewer", PASSWORD)
    expect(page.get_by_role("heading", name="Runs", level=1)).to_be_visible()
    context.close()


def test_a_viewer_finds_no_way_to_start_a_run_on_the_page_nor_by_the_api(ward, browser):
    context, page = signed_in(browser, ward.url, "viewer")
    page.get_by_role("link", name="New job").click()
    expect(page.get_by_text(re.compile('need.* the role "coordinator"'))).to_be_visible()
    assert page.get_by_role("button", name="Start the run").count() == 0
    secret = ward.people.issue_token("viewer", "test", ["read"], 1)[1]
    authority = str(ward.federation.coordinator_kit / "ca.crt")
    said = httpx.post(
        f"{ward.url}/api/v1/runs", json={"job": "name = 1"}, headers={"Authorization": f"Bearer {secret}"},
        verify=ssl.create_default_context(cafile=authority),
    )  # fmt: skip
    assert said.status_code == 403
    context.close()


def test_an_open_page_whose_session_has_ended_goes_to_the_sign_in_page(ward, browser):
    context, page = signed_in(browser, ward.url, "admin")
    page.get_by_role("link", name="People").click()
    expect(page.get_by_role("heading", name="Everybody", exact=True)).to_be_visible()
    ward.people.end_sessions("admin")
    page.get_by_role("button", name=re.compile("^Add")).first.click()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    context.close()


def test_a_page_that_comes_back_after_its_session_has_ended_goes_to_the_sign_in_page(ward, browser):
    context, page = signed_in(browser, ward.url, "viewer")
    page.goto(f"{ward.url}/runs")
    expect(page.get_by_role("heading", name="Runs", level=1)).to_be_visible()
    ward.restart_coordinator(meanwhile=lambda: ward.people.end_sessions("viewer"))
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()  # nobody has touched the page
    enter(page, "viewer", PASSWORD)
    expect(page).to_have_url(f"{ward.url}/runs")
    context.close()


def test_an_open_page_finds_the_coordinator_again_after_it_was_restarted(ward, browser):
    context, page = signed_in(browser, ward.url, "viewer")
    since = page.get_by_text(re.compile("The coordinator has been running since")).locator("time")
    before = since.get_attribute("datetime")
    ward.restart_coordinator()
    expect(since).not_to_have_attribute("datetime", before)  # nobody has touched the page
    expect(page.get_by_text(re.compile("2 of 2 sites are connected"))).to_be_visible()
    context.close()


def test_text_from_outside_is_shown_and_never_run(ward, browser):
    people: People = ward.people
    people.add("mallory", "viewer", by="test", password=PASSWORD, display="<script>window.caught = true</script>")
    context, page = signed_in(browser, ward.url, "admin")
    page.get_by_role("link", name="People").click()
    expect(page.get_by_text("<script>window.caught = true</script>")).to_be_visible()
    page.goto(f"{ward.url}/runs?text=%22%3E%3Cscript%3Ewindow.caught%20%3D%20true%3C/script%3E")
    expect(page.get_by_text("No run is like this.")).to_be_visible()
    assert page.evaluate("window.caught") is None
    context.close()


def test_the_keyboard_alone_reaches_content_navigation_and_form(ward, browser):
    context, page = signed_in(browser, ward.url, "coordinator")
    page.goto(f"{ward.url}/new")
    page.get_by_role("heading", name="New job", level=1).wait_for()
    reached = []
    for _ in range(14):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("(document.activeElement.textContent || document.activeElement.type).trim()"))
    assert reached[0] == "Skip to the content"
    assert {"Federation", "Runs", "Models", "Sign out"} <= set(reached)
    context.close()


def pages_of(ward, trained, page) -> list[str]:
    """Every page of the dashboard and of the hospital's page, which `page` may then open."""
    page.goto(f"{ward.url}/models")
    model = page.get_by_role("link", name="chest-study, best").get_attribute("href")
    own = ["/", "/runs", f"/runs/{trained}", f"/compare?runs={trained}", "/new", "/models", model, "/people", "/audit"]
    page.goto(ward.link)
    hospital = ["/", "/data", "/jobs", "/budget", "/releases", "/audit", "/policy"]
    return [ward.url + path for path in own] + [ward.link.split("/?")[0] + path for path in hospital]


def test_no_page_has_a_serious_accessibility_fault_in_either_theme(trained, ward, browser):
    context, page = signed_in(browser, ward.url, "admin")
    faults = {url: faults_of(page, url) for url in [*pages_of(ward, trained, page), f"{ward.url}/api/v1/docs"]}
    context.clear_cookies()
    faults["signing in"] = faults_of(page, f"{ward.url}/sign-in")
    assert {url: found for url, found in faults.items() if found} == {}
    context.close()


def test_every_page_fits_a_tablet_and_loads_nothing_from_elsewhere(trained, ward, browser):
    context, page = signed_in(browser, ward.url, "admin")
    pages = pages_of(ward, trained, page)
    page.set_viewport_size({"width": 810, "height": 1080})
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("websocket", lambda socket: asked.append(socket.url.replace("ws", "http", 1)))
    too_wide = {}
    for url in [*pages, f"{ward.url}/api/v1/docs"]:
        page.goto(url)
        page.get_by_role("heading", level=1).first.wait_for()
        page.locator("[aria-busy=true]").first.wait_for(state="detached")
        wide = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
        if wide[0] > wide[1]:
            too_wide[url] = wide
    assert too_wide == {}
    own = (ward.url, ward.link.split("/?")[0], "data:", "blob:")
    assert len(asked) > len(pages)
    assert [url for url in asked if not url.startswith(own)] == []
    context.close()


def faults_of(page, url: str) -> list[str]:
    """What axe finds serious in the light theme, and the contrasts that it finds too low in the dark one."""
    page.emulate_media(color_scheme="light")
    page.goto(url)
    page.get_by_role("heading", level=1).first.wait_for()
    page.locator("[aria-busy=true]").first.wait_for(state="detached")
    found = serious(page, {"resultTypes": ["violations"]})
    page.emulate_media(color_scheme="dark")
    page.wait_for_function("document.documentElement.dataset.theme === 'dark'")
    contrast = {"runOnly": {"type": "rule", "values": ["color-contrast"]}, "resultTypes": ["violations"]}
    return found + [f"dark: {fault}" for fault in serious(page, contrast)]


def serious(page, options: dict) -> list[str]:
    found = Axe().run(page, options=options).response["violations"]
    return [
        f"{one['id']}: {node['target']} {node['html'][:120]}"
        for one in found
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"][:3]
    ]
