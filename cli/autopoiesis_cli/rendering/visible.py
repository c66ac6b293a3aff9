"""A render hook that escapes control characters of a terminal, once, where everything is printed."""

from collections.abc import Iterator

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderableType, RenderHook
from rich.segment import Segment

from autopoiesis_lib.protocol.text import printable

__all__ = ["Visible"]


class Visible(RenderHook):
    """A hook of a console that prints control, bidirectional and escape characters in all texts as escapes."""

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """Wrap the renderables that are about to be printed."""
        return [_Shown(item) for item in renderables]


class _Shown:
    """A renderable whose texts are made printable after layout; rich's own control codes stay."""

    def __init__(self, inner: RenderableType) -> None:
        self._inner = inner

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        """Lay out the renderable, then escape its texts."""
        for segment in console.render(self._inner, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text, allowed="\n"))
