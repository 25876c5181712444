"""Writes docs/benchmarks.md and its chart from the raw figures."""

import hashlib
import os
import platform
import subprocess
from collections import defaultdict
from datetime import date
from html import escape
from pathlib import Path
from statistics import median
from typing import TypedDict

from . import data
from .data import SLOW_AT_ONCE, SLOW_MS
from .figures import PEERS, Figures, Rounds, Verdict, cpu, family, seconds
from .peers import PACKAGES, Toolbox
from .rows import ROWS
from .servers import ADMITTED, FIRST_BYTE, PER_CONNECTION


class Results(TypedDict):
    """What is kept of runs: the figures of each row, and of the machine."""

    machine: dict[str, str]
    rows: dict[str, Rounds]
    # which of ours each row was measured with
    builds: dict[str, str]


COLOURS = {"ossvp": "#2f81f7", "floor": "#8b949e", "pages": "#8b949e"}
PEER = "#d29922"


def _said_by(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    return (done.stdout + done.stderr).strip()


def machine(directory: Path, toolbox: Toolbox) -> dict[str, str]:
    """What the figures depend on, as lines of a table."""
    cpus = [line for line in Path("/proc/cpuinfo").read_text().split("\n") if "model name" in line]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    systems = Path("/etc/os-release").read_text().split("\n")
    system = next(line for line in systems if line.startswith("PRETTY_NAME"))
    disk = _said_by("findmnt", "--noheadings", "--output", "FSTYPE", "--target", str(directory))
    facts = {
        "date": date.today().isoformat(),
        "processors": f"{os.cpu_count()} × {cpus[0].split(': ')[1] if cpus else platform.machine()}",
        "memory": f"{memory:.0f} GiB",
        "system": f"{system.split('=')[1].strip(chr(34))}, Linux {platform.release()}",
        "disk": disk,
        "nginx": _said_by("nginx", "-v").split("/")[-1],
        "seed of the data": str(data.SEED),
        "ossvp": f"{toolbox.version('ossvp')}, {build_of(toolbox.programs['ossvp'])}",
    }
    for peer in PEERS:
        package = PACKAGES[peer][0]
        facts[peer] = (
            f"{toolbox.version(peer)} ({package} of PyPI)"
            if peer in toolbox.programs
            else f"not to be had: {toolbox.missing[peer]}"
        )
    return facts


def build_of(program: Path) -> str:
    """What tells one build from another."""
    return f"SHA-256 {hashlib.sha256(program.read_bytes()).hexdigest()[:12]}"


def _time(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"


def _ratio(verdict: Verdict) -> str:
    least, most = verdict.between
    return f"{verdict.ratio:.2f} ({least:.2f} – {most:.2f})"


def _goal(sign: str, bound: float, met: bool) -> str:
    return f"{sign} {bound:g}: {'met' if met else '**not met**'}"


def _summary(all_: list[Figures]) -> str:
    lines = [
        "| work | ours | against | times faster | goal | CPU of all | goal | peak MiB | goal |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for figures in all_:
        row, ours = figures.row, figures.ours
        if ours in figures.failed:
            lines.append(f"| {row.title} | failed: {figures.failed[ours]} |" + " |" * 7)
            continue
        cells = [row.title, f"{_time(figures.median(ours, seconds))} s"]
        wall, cpu_ = figures.wall, figures.cpu
        cells += (
            [wall.against, _ratio(wall), _goal("≥", wall.goal.factor, wall.met)]
            if wall
            else [""] * 3
        )
        cells += (
            [f"{_ratio(cpu_)} × {cpu_.against}", _goal("≤", cpu_.goal.factor, cpu_.met)]
            if cpu_
            else [""] * 2
        )
        cells.append(f"{figures.peak(ours):.0f}")
        cells.append(_goal("<", row.memory, bool(figures.memory_met)) if row.memory else "")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _detail(figures: Figures) -> list[str]:
    lines = [
        f"### {figures.row.title}",
        "",
        f"Medians of {len(figures.rounds)} rounds, and the least and the most.",
        "",
        "| | wall s | to ours | CPU of all s | of the client s | peak MiB |",
        "|---|---|---|---|---|---|",
    ]
    for tool in figures.tools:
        walls = figures.of(tool, seconds)
        client = figures.median(tool, lambda run: run["cpu_client"])
        lines.append(
            f"| {tool} | {_time(median(walls))} ({_time(min(walls))} – {_time(max(walls))})"
            f" | {figures.ratio(tool, seconds) if figures.ours in figures.tools else 0:.2f}"
            f" | {_time(figures.median(tool, cpu))} | {_time(client)} | {figures.peak(tool):.0f} |"
        )
    lines += [f"| {tool} | failed: {why} | | | | |" for tool, why in figures.failed.items()]
    if figures.row.port == "limited":
        lines += ["", *_refused(figures)]
    return [*lines, ""]


def _refused(figures: Figures) -> list[str]:
    lines = ["| | objects a second | requests | of these refused |", "|---|---|---|---|"]
    objects = 10_000
    for tool in figures.tools:
        rate = median(objects / wall for wall in figures.of(tool, seconds))
        requests = figures.median(tool, lambda run: run["requests"])
        refused = figures.median(tool, lambda run: run["refused"])
        lines.append(f"| {tool} | {rate:.0f} | {requests:.0f} | {refused:.0f} |")
    return lines


def chart(all_: list[Figures]) -> str:
    """Bars of wall seconds: ours, then each family with the flags that were fastest."""
    width, left, bar = 880, 270, 17
    parts: list[str] = []
    y = 8
    for figures in all_:
        ordered = sorted(figures.tools, key=lambda tool: figures.median(tool, seconds))
        ours = [tool for tool in figures.tools if family(tool) == "ossvp"]
        best = {family(tool): tool for tool in reversed(ordered) if tool not in ours}
        shown = ours + [tool for tool in ordered if tool in best.values()]
        longest = max((figures.median(tool, seconds) for tool in shown), default=1.0)
        parts.append(f'<text x="8" y="{y + 13}" class="title">{escape(figures.row.title)}</text>')
        y += 22
        for tool in shown:
            taken = figures.median(tool, seconds)
            length = round(taken / longest * (width - left - 90))
            parts.append(
                f'<text x="{left - 8}" y="{y + 12}" text-anchor="end">{escape(tool)}</text>'
                f'<rect x="{left}" y="{y + 1}" width="{length}" height="{bar - 4}" rx="2"'
                f' fill="{COLOURS.get(family(tool), PEER)}"/>'
                f'<text x="{left + length + 6}" y="{y + 12}">{_time(taken)} s</text>'
            )
            y += bar
        y += 10
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {y}" width="{width}"'
        f' height="{y}" role="img" aria-label="Seconds that each tool took">\n'
        "<style>text { font: 12px system-ui, sans-serif; fill: #59636e; }"
        " .title { font-weight: 600; fill: #1f2328; }"
        " @media (prefers-color-scheme: dark)"
        " { text { fill: #9198a1; } .title { fill: #f0f6fc; } }</style>\n"
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _prose(facts: dict[str, str], all_: list[Figures]) -> str:
    table = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    details = "\n".join(line for figures in all_ for line in _detail(figures))
    late = f"{FIRST_BYTE * 1000:.0f} ms to the first byte and {PER_CONNECTION / 1e6:.0f} MB/s"
    return f"""\
# Benchmarks

Made by `scripts/bench`, which makes them again on any Debian machine, as root: it installs nginx and
the peers, makes the data, and takes about an hour. `scripts/bench --quick` prints the short rows
within 3 minutes.

![Seconds that each tool took](benchmarks.svg)

{_summary(all_)}

Ratios are medians of those of each round; in brackets is where the median lies with 19 chances of 20:
of 5 rounds, the least and the most. Whether a goal is met goes by the median.

Ours runs with its default flags, checks every object's CRC-64, and writes each file under a name of
its own before it gets the final one. A peer is run with its defaults and with the flags that were
fastest of those tried; where waiting decides (20 ms), only with the latter. The floor is
`benches/tools/src/bin/floor.rs`: epoll, `recv`, `pwrite` and nothing else, no signature, no checksum,
no renaming. CPU of all is what the processors did in the time, client, server and kernel: on one
machine the kernel bills TCP to whichever side is running, so the client's share says little.

## Machine

| | |
|---|---|
{table}

Client and server share the machine. nginx answers from the page cache by `sendfile`, with one worker: on
two processors a second one made no peer faster. One port answers at once; one after {late} a
connection; one by TLS 1.3, AES-128-GCM for all; one admits {ADMITTED:,} requests a second and answers
503 beyond. No network is involved, so this compares what tools cost, not what a region's bandwidth
allows.

- Of juicefs's two S3 clients the cheaper one speaks no TLS; over TLS it runs with the other, which costs
  it some 5 % there.
- The listing of a million is served by `tests/oss-server`, which computes each page; `pages` is a bare
  loop of requests for them, which reads nothing in them but the next token.
- Requests that were refused are counted by the server.
- The file system with slow names is a FUSE view of a tmpfs, which serves {SLOW_AT_ONCE} calls at once and
  lets each call on names (lookup, create, link, rename, attributes, …) wait {SLOW_MS} ms, as a NAS does.
  Ours is compared with the time in which as many calls as it made can be served, all side by side; the
  kernel lets only one call at a time change a directory.

## What distorts such figures, and what is done about it

- Memory that a virtual machine has not used of late is several times slower: as much as a run will fill
  is touched and freed right before it, page by page for tmpfs, in large pages for a disk's page cache.
- The server's first answers are slow: a run before the first round is not counted.
- Removing 10,000 files costs a disk seconds of work afterwards, and other work on the machine would be
  billed to whoever is measured: before each run everything is synced, and idle processors waited for.
- Machines have moods: every tool runs once a round, another one first each time. Ratios are taken within
  a round; the table has their median.
- A process's peak memory is at least what its parent had when it forked: a small one starts them.
- A tool that is fast and wrong: after each run everything is compared with the data, byte for byte.

## All figures

{details}
"""


def _facts(results: Results) -> dict[str, str]:
    """What was measured where; rows that keep figures of an earlier build say so."""
    facts, builds = results["machine"], results["builds"]
    titles = defaultdict[str, list[str]](list)
    for row in ROWS:
        if (build := builds.get(row.name, facts["ossvp"])) != facts["ossvp"]:
            titles[build].append(row.title)
    return facts | {f"ossvp of: {'; '.join(rows)}": build for build, rows in titles.items()}


def _figures(results: Results) -> list[Figures]:
    rounds = results["rows"]
    return [Figures(row, rounds[row.name]) for row in ROWS if row.name in rounds]


def write(directory: Path, results: Results) -> None:
    """Writes both files for the rows that there are figures of."""
    all_ = _figures(results)
    (directory / "benchmarks.md").write_text(_prose(_facts(results), all_).rstrip() + "\n")
    (directory / "benchmarks.svg").write_text(chart(all_))


def table(results: Results) -> str:
    return _summary(_figures(results))
