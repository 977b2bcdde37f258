"""The API's documentation for people: one plain page from its OpenAPI description, without anything from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

_PAGES = Environment(loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True)
METHODS = ("get", "post", "put", "patch", "delete")


def docs_page(openapi: dict[str, Any]) -> str:
    """Return the page."""
    endpoints = [
        {"method": method.upper(), "path": path, **operation}
        for path, operations in openapi["paths"].items()
        for method, operation in operations.items()
        if method in METHODS
    ]
    return _PAGES.get_template("api_docs.html").render(info=openapi["info"], endpoints=endpoints, type_of=type_of)


def type_of(schema: dict[str, Any]) -> str:
    """Return a schema in a few words."""
    if "$ref" in schema:
        return str(schema["$ref"]).rsplit("/", 1)[-1]
    if "enum" in schema:
        return " | ".join(str(value) or '""' for value in schema["enum"])
    if "const" in schema:
        return str(schema["const"]) or '""'
    if "anyOf" in schema:
        return " or ".join(type_of(one) for one in schema["anyOf"])
    if schema.get("type") == "array":
        return f"list of {type_of(schema.get('items', {}))}"
    return str(schema.get("type", "anything"))
