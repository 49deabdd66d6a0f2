"""``python -m bench``: see ``--help``."""

from __future__ import annotations

import argparse
import os
import platform
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

from bench import figures, measure, plots, report
from bench.sections import SECTIONS
from bench.world import say, section, world
from kata import hostfacts


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench", description="Measure Kata beside runc and crun; asserts nothing.",
        epilog="Sections: " + "; ".join(f"{name} ({entry.title})" for name, entry in SECTIONS.items()))
    parser.add_argument("--only", action="append", choices=SECTIONS, metavar="SECTION",
                        help="only this section (again for more); an earlier run's other sections are kept")
    parser.add_argument("--quick", action="store_true", help="few rounds: does it work, and about what is it")
    parser.add_argument("--output", type=Path, default=Path("bench-results"), metavar="DIR",
                        help="where results.json, table.txt, table.md and the plots go [bench-results]")
    return parser.parse_args()


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    facts = hostfacts.collect()

    def first(*argv: str) -> str:
        try:
            done = subprocess.run(argv, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            return ""
        return (done.stdout or done.stderr).partition("\n")[0].strip()

    with open("/proc/cpuinfo", encoding="ascii", errors="replace") as f:
        model = next((line.partition(":")[2].strip() for line in f if line.startswith("model name")), "")
    found = {"processors": facts.cpus, "processor": model, "memory": f"{facts.memory} MiB",
             "KVM": "yes" if facts.kvm_usable else "no", "kernel": platform.release(),
             "Python": platform.python_version(), "QEMU": first("qemu-system-x86_64", "--version"),
             "runc": first("runc", "--version"), "crun": first("crun", "--version"),
             "docker": first("dockerd", "--version")}
    return {key: value for key, value in found.items() if value}


def main() -> int:
    options = arguments()
    if os.geteuid() != 0:
        print("bench: it needs root: it starts virtual machines and a docker daemon", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    options.output = options.output.absolute()
    options.output.mkdir(parents=True, exist_ok=True)
    results = options.output / "results.json"
    old = figures.load(results) if options.only else []
    failed: list[str] = []
    new: list[figures.Section] = []
    try:
        with world(options.quick) as place:
            for name in options.only or SECTIONS:
                entry = SECTIONS[name]
                try:
                    with section(place, name, entry.title) as made:
                        entry.measure(place, made)
                except Exception as e:  # the other sections go on
                    if not isinstance(e, measure.Failed | AssertionError):
                        traceback.print_exc()
                    failed.append(f"{name}: {e}")
                    say(f"{name} failed: {e}")
                    continue
                new.append(made)
                print(report.plain([made]), flush=True)
    except KeyboardInterrupt:
        say("interrupted")
        failed.append("interrupted")
    merged = figures.merge(old, new, list(SECTIONS))
    facts = machine()
    figures.save(results, facts, merged)
    (options.output / "table.txt").write_text(report.plain(merged).lstrip("\n") + "\n")
    (options.output / "table.md").write_text(report.markdown(facts, merged))
    for name, text in plots.draw(merged):
        (options.output / name).write_text(text)
    say(f"written: {options.output}/")
    for text in failed:
        print(f"bench: {text}", file=sys.stderr)
    return 130 if "interrupted" in failed else 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
