"""Every page of the coordinator: to add one is to add its file and its name here."""

from __future__ import annotations

from fastapi import FastAPI
from nicegui import ui

from common.web.live import Feed
from server.actions import Actions
from server.dashboard.pages import audit, compare, federation, model, models, new_job, people, run, runs
from server.dashboard.pages.desk import Desk
from server.people import People
from server.readmodel import ReadModel

PAGES = (federation, runs, run, compare, new_job, models, model, people, audit)


def add_pages(app: FastAPI, read: ReadModel, actions: Actions, people: People, feed: Feed, federation: str) -> None:
    """Add all pages to `app`, which has the sign-in page and the API already."""
    desk = Desk(read, actions, people, feed, federation)
    for page in PAGES:
        page.add(desk)
    # No storage, no Tailwind (a compiler in the browser that would cost each page its first second), nothing on air.
    ui.run_with(
        app,
        title="Ward Round",
        dark=None,
        tailwind=False,
        binding_refresh_interval=None,
        reconnect_timeout=30.0,
        show_welcome_message=False,
    )
