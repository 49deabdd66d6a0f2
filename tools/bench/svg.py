"""Bar and line charts as SVG, in as few elements as they need."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

COLOURS = ("#4c78a8", "#72b7b2", "#e45756", "#f58518", "#54a24b", "#b279a2", "#eeca3b")
WIDTH, HEIGHT = 860, 400
LEFT, RIGHT, TOP, BOTTOM = 72, 16, 62, 46


class Bar(NamedTuple):
    """A value with the range it was found in."""

    value: float
    low: float
    high: float


class Line(NamedTuple):
    """Points of a curve, and single measurements shown as dots."""

    points: Sequence[tuple[float, float]]
    dots: Sequence[tuple[float, float]] = ()


class Axis:
    """Values upward: linear from 0, or logarithmic."""

    def __init__(self, values: Sequence[float], logarithmic: bool) -> None:
        self.logarithmic = logarithmic
        top = max(values)
        if logarithmic:
            self.low = 10.0 ** math.floor(math.log10(min(values)))
            self.high = 10.0 ** math.ceil(math.log10(top) + 1e-9)
        else:
            self.low, self.high = 0.0, top * 1.05

    def ticks(self) -> list[float]:
        if self.logarithmic:
            first, last = round(math.log10(self.low)), round(math.log10(self.high))
            return [10.0 ** e for e in range(first, last + 1)]
        step = 10.0 ** math.floor(math.log10(self.high))
        step = next(step * f for f in (0.1, 0.2, 0.25, 0.5, 1, 2) if self.high / (step * f) <= 7)
        return [step * n for n in range(int(self.high / step) + 1)]

    def y(self, value: float) -> float:
        """Pixels from the top."""
        if self.logarithmic:
            part = (math.log10(max(value, self.low)) - math.log10(self.low)) / math.log10(self.high / self.low)
        else:
            part = value / self.high
        return round(HEIGHT - BOTTOM - part * (HEIGHT - TOP - BOTTOM), 1)


def bars(title: str, unit: str, groups: Sequence[str], members: Mapping[str, Sequence[Bar | None]],
         palette: Mapping[str, str], logarithmic: bool = False) -> str:
    """Groups of bars, one colour a member, with the range as a line.

    :param members: name -> a bar for each group, None where there is none.
    :param palette: name -> colour.
    """
    present = [bar for row in members.values() for bar in row if bar]
    axis = Axis([v for bar in present for v in (bar.low or bar.value, bar.high)], logarithmic)
    parts = frame(title, unit, list(members), palette, axis)
    room = (WIDTH - LEFT - RIGHT) / len(groups)
    wide = room * 0.84 / len(members)
    for g, group in enumerate(groups):
        start = LEFT + room * g + room * 0.08
        parts.append(_text(start + room * 0.42, HEIGHT - BOTTOM + 18, group, "middle"))
        for m, (name, row) in enumerate(members.items()):
            if bar := row[g]:
                left, top = start + wide * m, axis.y(bar.value)
                parts.append(f'<rect x="{left:.1f}" y="{top}" width="{wide * 0.9:.1f}" '
                             f'height="{HEIGHT - BOTTOM - top:.1f}" fill="{palette[name]}"/>')
                x = left + wide * 0.45
                parts.append(f'<path d="M{x:.1f} {axis.y(bar.low)}V{axis.y(bar.high)}" stroke="#333"/>')
                parts.append(_text(x, axis.y(bar.high) - 4, short(bar.value), "middle", 10))
    return document(parts)


def lines(title: str, unit: str, along: str, curves: Mapping[str, Line], palette: Mapping[str, str],
          logarithmic: bool = False) -> str:
    """Curves over a count (``along`` says of what)."""
    values = [y for curve in curves.values() for _x, y in (*curve.points, *curve.dots)]
    places = sorted({x for curve in curves.values() for x, _y in curve.points})
    axis = Axis(values, logarithmic)
    parts = frame(title, unit, list(curves), palette, axis)
    scale = (WIDTH - LEFT - RIGHT - 40) / max(places)

    def x(value: float) -> float:
        return round(LEFT + 20 + value * scale, 1)

    for place in places:
        parts.append(_text(x(place), HEIGHT - BOTTOM + 18, f"{place:g}", "middle"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, along, "middle"))
    for name, curve in curves.items():
        path = " ".join(f"{x(a)},{axis.y(b)}" for a, b in curve.points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{palette[name]}" stroke-width="2"/>')
        parts += [f'<circle cx="{x(a)}" cy="{axis.y(b)}" r="4" fill="{palette[name]}"/>' for a, b in curve.points]
        parts += [f'<circle cx="{x(a)}" cy="{axis.y(b)}" r="2" fill="{palette[name]}" fill-opacity=".4"/>'
                  for a, b in curve.dots]
    return document(parts)


def frame(title: str, unit: str, names: Sequence[str], palette: Mapping[str, str], axis: Axis) -> list[str]:
    """Title, legend, and the axis with its lines."""
    parts = [_text(LEFT, 22, title, size=15)]
    at = float(LEFT)
    for name in names:
        parts.append(f'<rect x="{at:.0f}" y="34" width="10" height="10" fill="{palette[name]}"/>')
        parts.append(_text(at + 14, 43, name))
        at += 30 + 6.6 * len(name)
    for tick in axis.ticks():
        y = axis.y(tick)
        parts.append(f'<path d="M{LEFT} {y}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        parts.append(_text(LEFT - 6, y + 4, short(tick), "end"))
    parts.append(_text(LEFT - 6, TOP - 8, unit, "end"))
    return parts


def document(parts: Sequence[str]) -> str:
    head = (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
            f'height="{HEIGHT}" font-family="sans-serif" font-size="12">')
    return "\n".join([head, '<rect width="100%" height="100%" fill="#fff"/>', *parts, "</svg>", ""])


def short(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def _text(x: float, y: float, text: str, anchor: str = "start", size: int = 12) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">{escape(text)}</text>'
