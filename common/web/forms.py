"""What a person fills in, presses and is asked: the browser's own elements with their labels, for keyboards and readers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from markupsafe import Markup
from nicegui import ui
from nicegui.events import GenericEventArguments

VALUE = "(e) => emit(e.target.value)"


class Field:
    """A field with its label: of one line, of several (`kind` "area"), or one of `options`. `value` is what it holds."""

    def __init__(
        self,
        label: str,
        value: str = "",
        *,
        kind: str = "text",
        options: Sequence[str] = (),
        on_change: Callable[[], object] | None = None,
        **attributes: str,
    ) -> None:
        self._value, self._told = value, on_change
        tag = "select" if options else "textarea" if kind == "area" else "input"
        with ui.element("label").classes("field") as self.box:
            ui.html(Markup("<span>{}</span>").format(label), sanitize=False)
            self._element = ui.element(tag).classes("box")
            for name, text in attributes.items():
                self._element.props[name.replace("_", "-")] = text
            if tag == "input":
                self._element.props["type"] = kind
            self._element.props["value"] = value
            with self._element:
                for option in options:
                    ui.html(Markup("{}").format(option), sanitize=False, tag="option").props["value"] = option
        self._element.on("change" if options else "input", self._changed, js_handler=VALUE)

    @property
    def value(self) -> str:
        """What stands in it."""
        return self._value

    def show(self, value: str) -> None:
        """Put something into it, without telling `on_change`."""
        if value != self._value:
            self._value = value
            self._element.props["value"] = value
            self._element.update()

    def _changed(self, event: GenericEventArguments) -> None:
        self._value = str(event.args)
        # What was typed is what stands there: with an older value, the next drawing of the page would bring that back.
        with self._element.props.suspend_updates():
            self._element.props["value"] = self._value
        if self._told is not None:
            self._told()


def tell(text: str, *, bad: bool = False) -> None:
    """Say something in a corner of the page; a screen reader says it at once."""
    ui.notify(text, type="negative" if bad else "positive", timeout=0 if bad else 5000, close_button="Close")


def button(text: str, on_click: Callable[[], object], *, kind: str = "") -> None:
    """Put a button here."""
    ui.html(Markup("{}").format(text), sanitize=False, tag="button").classes(f"button {kind}").props("type=button").on(
        "click", on_click
    )


async def confirmed(title: str, text: str, yes: str, *, kind: str = "") -> bool:
    """Ask before something that matters; return whether the answer was yes."""
    with (
        ui.dialog().props(f'aria-label="{title}"') as dialog,
        ui.element("div").classes("sheet").style("max-width:520px"),
    ):
        ui.html(Markup("<h2>{}</h2><p>{}</p>").format(title, text), sanitize=False)
        with ui.element("div").classes("row-of"):
            button(yes, lambda: dialog.submit(True), kind=kind)
            button("Cancel", lambda: dialog.submit(False), kind="plain")
    answer = bool(await dialog)
    dialog.delete()
    return answer


def html(content: str) -> None:
    """Put HTML here, which was escaped where it was made."""
    ui.html(content, sanitize=False)
