"""Small charts as inline SVG, so that a report needs no library, no network and no other file."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Series", "chart"]

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 640, 300, 64, 40, 12, 150
COLOURS = ("#1f6feb", "#d1242f", "#1a7f37", "#9a6700", "#8250df", "#57606a")


@dataclass(frozen=True)
class Series:
    """Named points, drawn as dots, as a line or as steps."""

    name: str
    points: Sequence[tuple[float, float]]
    style: str = "line"
    """The drawing style: "dots", "line" or "steps"."""


def chart(series: Sequence[Series], x_label: str, y_label: str, *, log_x: bool = False) -> str:
    """Return an SVG element with axes, a legend, and the series in the given order."""
    points = [point for item in series for point in item.points if not log_x or point[0] > 0]
    if not points:
        return "<p>Nothing to draw.</p>"
    scale_x = _Scale([x for x, _ in points], LEFT, WIDTH - RIGHT, log_x)
    scale_y = _Scale([y for _, y in points], HEIGHT - BOTTOM, TOP, False)
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(y_label)} by {escape(x_label)}">']
    for value in scale_x.ticks():
        x = scale_x.place(value)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 14}" text-anchor="middle">{_shown(value)}</text>')
    for value in scale_y.ticks():
        y = scale_y.place(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_shown(value)}</text>')
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>'
    )
    parts.append(
        f'<text transform="translate(12 {HEIGHT / 2}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>'
    )
    for index, item in enumerate(series):
        colour = COLOURS[index % len(COLOURS)]
        placed = [(scale_x.place(x), scale_y.place(y)) for x, y in item.points if not log_x or x > 0]
        parts.append(_drawn(placed, item.style, colour))
        y = TOP + 14 + 18 * index
        parts.append(f'<rect x="{WIDTH - RIGHT + 10}" y="{y - 9}" width="10" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{WIDTH - RIGHT + 25}" y="{y}">{escape(item.name)}</text>')
    return "".join([*parts, "</svg>"])


def _drawn(points: Sequence[tuple[float, float]], style: str, colour: str) -> str:
    if style == "dots":
        return "".join(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2" fill="{colour}" fill-opacity="0.5"/>' for x, y in points
        )
    path = list(points)
    if style == "steps":
        path = [
            corner
            for (x, y), (nx, _) in zip(points, [*points[1:], points[-1]], strict=True)
            for corner in ((x, y), (nx, y))
        ]
    joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in path)
    return f'<polyline fill="none" stroke="{colour}" stroke-width="1.6" points="{joined}"/>'


class _Scale:
    """The mapping from data values to pixels along one axis."""

    def __init__(self, values: Sequence[float], start: float, end: float, log: bool) -> None:
        self._log = log
        low, high = min(values), max(values)
        if log:
            low, high = math.log10(low), math.log10(high)
        if high - low < 1e-12:
            low, high = low - 0.5, high + 0.5
        self.low, self.high, self.start, self.end = low, high, start, end

    def place(self, value: float) -> float:
        """Return the pixel of a value."""
        at = math.log10(value) if self._log else value
        return self.start + (at - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Return round values inside the range."""
        if self._log:
            return [10.0**power for power in range(math.ceil(self.low), math.floor(self.high) + 1)]
        step = 10.0 ** math.floor(math.log10((self.high - self.low) / 3))
        step *= next(factor for factor in (1, 2, 5, 10) if (self.high - self.low) / (step * factor) <= 6)
        first = math.ceil(self.low / step)
        return [k * step for k in range(first, math.floor(self.high / step) + 1)]


def _shown(value: float) -> str:
    return f"{value:.4g}"
