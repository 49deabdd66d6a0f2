"""The benchmark's own logic: figures, tables, plots, and who is measured when."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench import figures, plots, report, svg
from bench.contenders import Contender, configuration
from bench.figures import Section
from bench.sections import SECTIONS
from bench.world import World
from kata.config import Settings, document, kata1


def example() -> Section:
    section = Section("verbs", "each verb on its own", started="2026-01-01T00:00:00Z", seconds=3)
    for value in (0.004, 0.002, 0.003):
        section.add("state", "runc", value)
    section.add("state", "crun", 0.002)
    section.add("state", "kata template", 0.03)
    section.add("create", "kata template", 1.5)
    return section


def test_medians_and_ratios() -> None:
    section = example()
    ours, base = section.find("state", "kata template"), section.find("state", "runc")
    assert ours and base and base.median == 0.003
    assert section.ratio(ours, "runc") == pytest.approx(10)
    assert section.ratio(base, "runc") is None, "nobody is compared with itself"
    alone = section.find("create", "kata template")
    assert alone and section.ratio(alone, "runc") is None


def test_a_later_run_replaces_its_sections_only(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    assert figures.load(path) == []
    old = [example(), Section("runs", "run of true")]
    figures.save(path, {"processors": 2}, old)
    assert figures.load(path) == old
    new = Section("verbs", "again")
    assert figures.merge(figures.load(path), [new], ["runs", "verbs", "docker"]) == [old[1], new]


def test_results_of_another_version_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text('{"version": 99}')
    with pytest.raises(ValueError, match="version 99"):
        figures.load(path)


@pytest.mark.parametrize(("value", "unit", "text"), [
    (0.0123, "s", "12.3 ms"), (0.5, "s", "500 ms"), (2.345, "s", "2.35 s"), (123.4, "MiB", "123 MiB"),
])
def test_amounts_have_three_digits(value: float, unit: str, text: str) -> None:
    assert report.amount(value, unit) == text


def test_the_table_keeps_a_metric_together() -> None:
    section = example()
    section.add("state", "kata cold", 0.05)
    assert [row[:2] for row in report.rows(section)] == [
        ["state", "runc"], ["state", "crun"], ["state", "kata template"], ["state", "kata cold"],
        ["create", "kata template"]]
    assert report.rows(section)[0][2:] == ["3.00 ms", "2.00 ms", "4.00 ms", "3", "", "1.5"]
    text = report.markdown({"processors": 2}, [section])
    assert "| state | runc | 3.00 ms |" in text and "|  | crun |" in text


def test_plots_are_svg() -> None:
    starts = Section("starts", "starts at once")
    for count in (1, 5):
        starts.add(f"{count} at once, until all run", "runc", 0.1 * count)
        starts.add(f"{count} at once, each", "runc", 0.1)
    drawn = dict(plots.draw([example(), starts, Section("docker", "nothing measured")]))
    assert sorted(drawn) == ["starts.svg", "verbs.svg"]
    for text in drawn.values():
        root = ElementTree.fromstring(text)
        assert root.tag.endswith("svg")
        for element in root.iter("{http://www.w3.org/2000/svg}rect"):
            assert not element.get("height", "0").startswith("-")


def test_a_contender_has_one_colour_in_all_plots() -> None:
    one, two = Section("runs", ""), Section("verbs", "")
    one.add("run true", "runc", 1)
    one.add("run true", "kata", 2)
    two.add("state", "kata", 1)
    drawn = dict(plots.draw([one, two]))
    assert svg.COLOURS[1] in drawn["runs.svg"] and svg.COLOURS[1] in drawn["verbs.svg"]
    assert svg.COLOURS[0] not in drawn["verbs.svg"]


@pytest.mark.parametrize(("values", "logarithmic"), [((0.004, 7.0), True), ((0.0, 33.0), False), ((5.0,), True)])
def test_an_axis_holds_its_values(values: tuple[float, ...], logarithmic: bool) -> None:
    axis = svg.Axis(values, logarithmic)
    assert all(svg.TOP <= axis.y(v) <= svg.HEIGHT - svg.BOTTOM for v in values)
    ticks = axis.ticks()
    assert 2 <= len(ticks) <= 8
    assert [axis.y(t) for t in ticks] == sorted((axis.y(t) for t in ticks), reverse=True)


def test_plots_are_of_sections_that_exist() -> None:
    assert {*plots.BARS, *plots.CURVES} <= set(SECTIONS)


def test_every_contender_is_first_now_and_then() -> None:
    who = [Contender(name, name, "/r") for name in "abc"]
    assert [World.turns(number, who)[0].name for number in range(4)] == ["a", "b", "c", "a"]
    assert all(set(World.turns(number, who)) == set(who) for number in range(4))


@pytest.mark.parametrize("boot", ["cold", "template", "pool"])
def test_configurations_are_kata_s(boot: str, tmp_path: Path) -> None:
    path = tmp_path / "bench.toml"
    path.write_text(configuration(boot, Path("/run/t"), pool_path=Path("/run/p") if boot == "pool" else None,
                                  pool=2, kernel="/k", initrd="/i"))
    settings = Settings(kata1.LANGUAGE)
    settings.add(document.read(str(path)))
    config = settings.config()
    assert (config.template, config.pool_size, config.kernel, config.initrd) == (
        boot != "cold", 2 if boot == "pool" else 0, "/k", "/i")
