"""Which display suits where the output goes."""

from __future__ import annotations

from rich.console import Console

from emoe.cli.display import Display, JsonDisplay, PlainDisplay
from emoe.cli.live import LiveDisplay


def choose_display(title: str, *, as_json: bool) -> Display:
    if as_json:
        return JsonDisplay()
    console = Console()
    return LiveDisplay(console=console, title=f"emoe: {title}") if console.is_terminal else PlainDisplay()
