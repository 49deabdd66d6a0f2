"""Figures as text: a table for people, and the same as Markdown."""

from __future__ import annotations

from typing import Any

from bench.figures import BASES, Section, Series


def amount(value: float, unit: str) -> str:
    """Three significant digits; short times in milliseconds."""
    if unit == "s" and value < 1:
        value, unit = value * 1000, "ms"
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{digits}f} {unit}"


def row(section: Section, series: Series) -> list[str]:
    """Metric, contender, median, min, max, n, and the median as multiple of each base's."""
    low, high = (amount(f(series.values), series.unit) for f in (min, max))
    ratios = [section.ratio(series, base) for base in BASES]
    return [series.metric, series.contender, amount(series.median, series.unit), low, high, str(len(series.values)),
            *("" if r is None else f"{r:.3g}" for r in ratios)]


HEADER = ["metric", "runtime", "median", "min", "max", "n", *(f"x {base}" for base in BASES)]


def rows(section: Section) -> list[list[str]]:
    """Of all series, those of one metric together."""
    return [row(section, s) for metric in section.metrics() for s in section.series if s.metric == metric]


def head(section: Section) -> str:
    return (f"{section.started}, {section.seconds:.0f} s; load {section.load_before:.2f} before, "
            f"{section.load_after:.2f} after")


def plain(sections: list[Section]) -> str:
    """For a terminal."""
    lines = []
    for section in sections:
        table = [HEADER, *rows(section)]
        widths = [max(len(r[i]) for r in table) for i in range(len(HEADER))]
        lines += ["", section.title, f"  ({head(section)})"]
        last = ""
        for cells in table:
            shown = ["" if cells[0] == last else cells[0], *cells[1:]]
            last = cells[0]
            lines.append("  " + "  ".join(c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in
                                          enumerate(zip(shown, widths, strict=True))).rstrip())
        lines += [f"  {note}" for note in section.notes]
    return "\n".join(lines)


def markdown(machine: dict[str, Any], sections: list[Section]) -> str:
    """For docs/performance.md."""
    lines = ["", "; ".join(f"{key}: {value}" for key, value in machine.items())]
    for section in sections:
        lines += ["", f"### {section.title}", "", head(section), ""]
        lines += [_line(HEADER), _line(["---", "---", *["---:"] * (len(HEADER) - 2)])]
        last = ""
        for cells in rows(section):
            lines.append(_line(["" if cells[0] == last else cells[0], *cells[1:]]))
            last = cells[0]
        lines += [f"\n{note}" for note in section.notes]
    return "\n".join(lines) + "\n"


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
