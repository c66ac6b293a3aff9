"""Texts on a console for people, with what a terminal would obey as escapes: once, where everything is printed."""

from collections.abc import Iterator

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderableType, RenderHook
from rich.segment import Segment

from autopoiesis_lib.protocol.text import printable

__all__ = ["Visible"]


class Visible(RenderHook):
    """A hook of a console: control, bidirectional and escape characters in whatever is printed come out as escapes."""

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """Wrap what is about to be printed."""
        return [_Shown(item) for item in renderables]


class _Shown:
    """Something to print whose texts are made printable once it is laid out; rich's own control codes stay."""

    def __init__(self, inner: RenderableType) -> None:
        self._inner = inner

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        """Lay out, then escape."""
        for segment in console.render(self._inner, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text, allowed="\n"))
