"""Fields of forms: the browser's own elements with their labels, so that keyboards and screen readers know them."""

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
