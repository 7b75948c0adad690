"""Terminal output in which text from models and tools cannot move the cursor: control characters become escapes."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from midstream.core.text import visible


class VisibleConsole(Console):
    """A rich console that emits its own control codes, but escapes those in printed text."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)
