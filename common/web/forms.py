"""What a person fills in, presses and is asked: the browser's own elements, with labels that screen readers say."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from markupsafe import Markup
from nicegui import ui
from nicegui.events import GenericEventArguments

TYPED = "(e) => { const box = e.target; clearTimeout(box.wait); box.wait = setTimeout(() => emit(box.value), 250); }"
"""What one types is told once one pauses,"""
DONE = "(e) => { clearTimeout(e.target.wait); emit(e.target.value); }"
"""and at once when one leaves the field: what is pressed next then finds it told."""
TICKED = "(e) => emit([...e.currentTarget.querySelectorAll('input:checked')].map((box) => box.value))"
PICKED = "(e) => { const found = e.target.closest('[data-pick]'); if (found) emit(found.dataset.pick); }"
Told = Callable[[], object]


class Field:
    """A field with its label: of one line, of several (`kind` "area"), or one of `options`. `value` is what it holds.

    What stands in it is the browser's: drawing the page again does not touch what somebody is typing.
    """

    def __init__(
        self,
        label: str,
        value: str = "",
        *,
        kind: str = "text",
        options: Sequence[str] = (),
        hint: str = "",
        on_change: Told | None = None,
        **attributes: str,
    ) -> None:
        self._value, self._told = value, on_change
        tag = "select" if options else "textarea" if kind == "area" else "input"
        with ui.element("label").classes("field") as self.box:
            _label(label, hint)
            self._element = ui.element(tag).classes("box")
            for name, text in attributes.items():
                self._element.props[name.replace("_", "-")] = text
            if tag == "input":
                self._element.props["type"] = kind
            if options:
                html_in(self._element, _options(options, value))
            else:
                self._element.props["defaultValue"] = value
        if not options:
            self._element.on("input", self._changed, js_handler=TYPED)
        self._element.on("change", self._changed, js_handler=DONE)

    @property
    def value(self) -> str:
        """What stands in it."""
        return self._value

    def show(self, value: str) -> None:
        """Put something into it, without telling `on_change`."""
        if value != self._value:
            self._value = value
            ui.run_javascript(
                f"const box = getHtmlElement({self._element.id}); if (box) box.value = {json.dumps(value)};"
            )

    def suggest(self, names: Sequence[str]) -> None:
        """Offer names to choose from; another may be typed all the same."""
        with self.box:
            listed = ui.element("datalist")
        html_in(listed, _options(names, ""))
        self._element.props["list"] = listed.html_id
        self._element.update()

    def _changed(self, event: GenericEventArguments) -> object:
        if str(event.args) == self._value:
            return None
        self._value = str(event.args)
        return self._told() if self._told is not None else None


class Ticks:
    """A group of boxes to tick, with its heading. `value` are the ticked ones, in the order of the boxes."""

    def __init__(
        self, label: str, options: Sequence[str], ticked: Sequence[str] = (), *, on_change: Told | None = None
    ) -> None:
        self._options, self._told = options, on_change
        self._value = self._known(ticked)
        self._element = ui.element("fieldset").classes("ticks")
        html_in(self._element, _boxes(label, options, self._value))
        self._element.on("change", self._changed, js_handler=TICKED)

    @property
    def value(self) -> list[str]:
        """What is ticked."""
        return self._value

    def show(self, ticked: Sequence[str]) -> None:
        """Tick these and no others, without telling `on_change`."""
        if self._known(ticked) != self._value:
            self._value = self._known(ticked)
            ui.run_javascript(
                f"getHtmlElement({self._element.id})?.querySelectorAll('input').forEach((box) => "
                f"{{ box.checked = {json.dumps(self._value)}.includes(box.value); }});"
            )

    def _known(self, ticked: Sequence[str]) -> list[str]:
        return [option for option in self._options if option in ticked]

    def _changed(self, event: GenericEventArguments) -> object:
        self._value = self._known([str(text) for text in event.args])
        return self._told() if self._told is not None else None


def on_pick(element: ui.element, pick: Callable[[str], object]) -> None:
    """Call `pick` with what is picked by the buttons (`tables.pick`) inside `element`."""
    element.on("click", lambda event: pick(str(event.args)), js_handler=PICKED)


def html_in(element: ui.element, content: Markup) -> None:
    """Let `element` hold HTML that never changes."""
    element.props["innerHTML"] = str(content)


def _label(label: str, hint: str) -> None:
    small = Markup(" <small>({})</small>").format(hint) if hint else Markup("")
    ui.html(Markup("{}{}").format(label, small), sanitize=False, tag="span")


def _options(options: Sequence[str], value: str) -> Markup:
    return Markup("").join(
        Markup("<option{}>{}</option>").format(Markup(" selected") if option == value else Markup(""), option)
        for option in options
    )


def _boxes(label: str, options: Sequence[str], ticked: Sequence[str]) -> Markup:
    boxes = Markup("").join(
        Markup('<label><input type="checkbox" value="{}"{}> {}</label>').format(
            option, Markup(" checked") if option in ticked else Markup(""), option
        )
        for option in options
    )
    return Markup("<legend>{}</legend><div>{}</div>").format(label, boxes)


def tell(text: str, *, bad: bool = False) -> None:
    """Say something in a corner of the page; a screen reader says it at once."""
    ui.notify(text, type="negative" if bad else "positive", timeout=0 if bad else 5000, close_button="Close")


def button(text: str, on_click: Callable[[], object], *, kind: str = "") -> None:
    """Put a button here."""
    ui.html(Markup("{}").format(text), sanitize=False, tag="button").classes(f"button {kind}").props("type=button").on(
        "click", on_click
    )


@contextmanager
def dialog(title: str) -> Iterator[ui.dialog]:
    """Build a dialog with a heading from what is made in the block; await it. It goes when it is closed."""
    with ui.dialog() as box, ui.element("div").classes("sheet ask"):
        box.props["aria-label"] = title
        box.on("hide", box.delete)
        html(Markup("<h2>{}</h2>").format(title))
        yield box


async def confirmed(title: str, text: str, yes: str, *, kind: str = "") -> bool:
    """Ask before something that matters; return whether the answer was yes."""
    with dialog(title) as box:
        html(Markup("<p>{}</p>").format(text))
        with ui.element("div").classes("row-of"):
            button(yes, lambda: box.submit(True), kind=kind)
            button("Cancel", lambda: box.submit(False), kind="plain")
    return bool(await box)


def html(content: str) -> None:
    """Put HTML here, which was escaped where it was made."""
    ui.html(content, sanitize=False)
