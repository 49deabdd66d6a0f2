"""Figures: what was measured, for whom, how often; and their files."""

from __future__ import annotations

import json
import os
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

VERSION = 1
#: Contenders whose medians the others' are divided by.
BASES = ("runc", "crun")


@dataclass
class Series:
    """All values of one metric for one contender, in the order in which they were taken."""

    metric: str
    contender: str
    unit: str  #: s | MiB | MB/s | ops/s
    values: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.values)


@dataclass
class Section:
    """What one section measured, and what else the machine did meanwhile."""

    name: str
    title: str
    series: list[Series] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    started: str = ""  #: RFC 3339
    seconds: float = 0.0
    load_before: float = 0.0  #: processes that wanted a processor, mean of the last minute
    load_after: float = 0.0

    def add(self, metric: str, contender: str, value: float, unit: str = "s") -> None:
        """One more value."""
        for series in self.series:
            if (series.metric, series.contender) == (metric, contender):
                series.values.append(value)
                return
        self.series.append(Series(metric, contender, unit, [value]))

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def find(self, metric: str, contender: str) -> Series | None:
        return next((s for s in self.series if (s.metric, s.contender) == (metric, contender)), None)

    def metrics(self) -> list[str]:
        """Names in the order in which they came."""
        return list(dict.fromkeys(s.metric for s in self.series))

    def contenders(self) -> list[str]:
        return list(dict.fromkeys(s.contender for s in self.series))

    def ratio(self, series: Series, base: str) -> float | None:
        """Median divided by that of ``base``; None where there is nothing to compare with."""
        other = self.find(series.metric, base)
        return series.median / other.median if other and other.median and series.contender != base else None


def save(path: Path, machine: dict[str, Any], sections: list[Section]) -> None:
    """Write all sections, aside and renamed."""
    data = {"version": VERSION, "machine": machine, "sections": [asdict(s) for s in sections]}
    aside = path.with_suffix(".new")
    aside.write_text(json.dumps(data, indent=1) + "\n")
    os.rename(aside, path)


def load(path: Path) -> list[Section]:
    """The sections of an earlier run; none if there was none.

    :raise ValueError: the file is of another version, or damaged.
    """
    try:
        data = json.loads(path.read_text())
    except FileNotFoundError:
        return []
    if data.get("version") != VERSION:
        raise ValueError(f"{path} has version {data.get('version')}; known is {VERSION}: remove it")
    return [Section(**{**raw, "series": [Series(**s) for s in raw["series"]]}) for raw in data["sections"]]


def merge(old: list[Section], new: list[Section], order: list[str]) -> list[Section]:
    """``new`` sections in place of ``old`` ones of the same name, in the given order."""
    found = {s.name: s for s in [*old, *new]}
    return [found[name] for name in order if name in found]
