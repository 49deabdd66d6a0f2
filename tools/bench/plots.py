"""Which plots are drawn of which figures."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping

from bench.figures import Section, Series
from bench.svg import COLOURS, Bar, Line, bars, lines


def draw(sections: list[Section]) -> Iterator[tuple[str, str]]:
    """(file name, SVG) of every plot for which there are figures."""
    everybody = dict.fromkeys(name for section in sections for name in section.contenders())
    palette = dict(zip(everybody, itertools.cycle(COLOURS), strict=False))  # the same in every plot
    found = {section.name: section for section in sections if section.series}
    for name, (title, pattern) in BARS.items():
        if (section := found.get(name)) and (text := bar_chart(section, palette, title, pattern)):
            yield f"{name}.svg", text
    for name, (title, along, pattern, dots) in CURVES.items():
        if (section := found.get(name)) and (text := curve_chart(section, palette, title, along, pattern, dots)):
            yield f"{name}.svg", text


#: Section -> title and which metrics: a group of bars each.
BARS = {
    "runs": ("run of true", r"run true$"),
    "verbs": ("verbs", r"(create|start|exec true|state|list|kill|delete)$"),
    "docker": ("docker", r"docker .*"),
    "streams": ("streams", r"std(in|out)"),
    "files": ("files of a container's root", r".* files.*"),
}
#: Section -> title, what is counted, the metrics of the curve (the group is the count), those of single dots.
CURVES = {
    "starts": ("starts at once: until all run, and each of them (dots)", "starts at once",
               r"(\d+) at once, until all run", r"(\d+) at once, each"),
    "memory": ("PSS of a sandbox", "sandboxes live", r"PSS each, (\d+) live", ""),
}


def bar_chart(section: Section, palette: Mapping[str, str], title: str, pattern: str) -> str:
    metrics = [m for m in section.metrics() if re.fullmatch(pattern, m)]
    if not metrics:
        return ""
    rows = {name: [bar(section.find(metric, name)) for metric in metrics] for name in section.contenders()}
    rows = {name: row for name, row in rows.items() if any(row)}
    units = {s.unit for s in section.series if s.metric in metrics}
    return bars(f"{title} (logarithmic)", "/".join(sorted(units)), metrics, rows, palette, logarithmic=True)


def bar(series: Series | None) -> Bar | None:
    return Bar(series.median, min(series.values), max(series.values)) if series else None


def curve_chart(
    section: Section, palette: Mapping[str, str], title: str, along: str, pattern: str, dots: str
) -> str:
    curves = {}
    for name in section.contenders():
        own = [s for s in section.series if s.contender == name]
        points = [(float(m[1]), s.median) for s in own if (m := re.fullmatch(pattern, s.metric))]
        each = [(float(m[1]), v) for s in own if dots and (m := re.fullmatch(dots, s.metric)) for v in s.values]
        if points:
            curves[name] = Line(sorted(points), each)
    unit = next((s.unit for s in section.series if re.fullmatch(pattern, s.metric)), "")
    return lines(f"{title} (logarithmic)", unit, along, curves, palette, logarithmic=True) if curves else ""
