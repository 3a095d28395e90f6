"""Context → one HTML file that needs nothing but itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

PAGE = Path(__file__).parent / "page"


def render(context: Mapping[str, Any]) -> str:
    """The report's HTML with style sheet and script inside; the same context gives the same text."""
    environment = Environment(
        loader=FileSystemLoader(PAGE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    style, script = (Markup((PAGE / name).read_text(encoding="utf-8")) for name in ("style.css", "script.js"))
    return environment.get_template("report.html").render(**context, style=style, script=script)
