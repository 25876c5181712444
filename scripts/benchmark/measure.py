"""Runs tools and takes down what each took.

What distorts: memory that the machine has not had of late is slow, so as much as a run will fill is
touched and freed first; removing 10,000 files gives a disk seconds of work later, so what it owes
is synced; the first run after a server's start is slow, so it is not counted; other work on the
machine would be counted, so it is waited for.
"""

import fcntl
import json
import mmap
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypedDict

from . import data
from .peers import TARGET, Source, Tool, Toolbox, environment
from .rows import Row
from .servers import Endpoints

# Linux 5.14; Python has no name for it yet.
_MADV_POPULATE_WRITE = 23

# A run that takes longer hangs.
PATIENCE = 300

USAGE = TARGET / "release" / "usage"
SLOW = TARGET / "release" / "slow"


class Run(TypedDict, total=False):
    """What a tool took: the figures of `usage`, of the server, of `ossvp --report`."""

    code: int | None
    seconds: float
    seconds_synced: float
    cpu_client: float
    cpu_all: float
    peak_rss_bytes: int
    # with limited admission: as the server counts them
    requests: int
    refused: int
    # on the slow file system: the shortest time in which it serves the calls on names that there were
    seconds_of_calls: float
    # of ours
    report: dict[str, Any]
    # why the run does not count
    failed: str


@contextmanager
def tmpfs(directory: Path) -> Iterator[None]:
    directory.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", "size=6g", "ossvp-bench", str(directory)]
    subprocess.run(command, check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(directory)], check=True)


@contextmanager
def memory_limit(limit: int | None) -> Iterator[list[str]]:
    """A control group of at most so much memory; gives what to put before a command to be in it."""
    if limit is None:
        yield []
        return
    old, new = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
    if (new / "cgroup.controllers").exists():
        (new / "cgroup.subtree_control").write_text("+memory")
        group, bound = new / "ossvp-bench", "memory.max"
    else:
        group, bound = old / "ossvp-bench", "memory.limit_in_bytes"
    group.mkdir(exist_ok=True)
    (group / bound).write_text(str(limit))
    try:
        yield ["sh", "-c", f'echo $$ >{group}/cgroup.procs && exec "$@"', "sh"]
    finally:
        group.rmdir()


@contextmanager
def machine_lock() -> Iterator[None]:
    """The machine for ourselves, where those who share it agreed on a file to lock."""
    path = os.environ.get("OSSVP_BENCH_LOCK")
    with open(path or os.devnull, "w") as file:
        if path:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def slow(real: Path, at: Path, calls: dict[str, float]) -> Iterator[None]:
    """Shows `real` at `at`, where each call on names takes its time; notes what they took at least."""
    real.mkdir()
    at.mkdir()
    command = [SLOW, real, at, f"--delay={data.SLOW_MS}", f"--at-once={data.SLOW_AT_ONCE}"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as served:
        assert served.stdin and served.stdout
        if served.stdout.readline() != "ready\n":
            raise RuntimeError("no FUSE here")
        try:
            yield
        finally:
            served.stdin.close()
            told = served.stdout.readline()
            # an interrupt ends it together with us, and leaves the view
            if not told:
                subprocess.run(["umount", "--lazy", str(at)], check=False)
        metadata = json.loads(told)["metadata"]
        calls["seconds"] = metadata * data.SLOW_MS / 1000 / data.SLOW_AT_ONCE
    at.rmdir()
    shutil.rmtree(real)


def touch_memory(size: int, in_large_pages: bool) -> None:
    """Makes the host of a virtual machine give the memory that the next run will take."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if in_large_pages:
        memory.madvise(mmap.MADV_HUGEPAGE)
    memory.madvise(_MADV_POPULATE_WRITE)
    memory.close()


def _busy() -> int:
    user, nice, system = Path("/proc/stat").read_text().split(maxsplit=4)[1:4]
    return int(user) + int(nice) + int(system)


def settle() -> None:
    """Waits until disks owe nothing and processors are idle: figures are of the whole machine."""
    os.sync()
    for _ in range(300):
        before = _busy()
        time.sleep(0.1)
        # less than a fifth of one processor
        if _busy() - before < 2:
            return
    print("the machine does other work: what follows is worth little", file=sys.stderr)


def difference(source: Path, filled: Path) -> str:
    """How what is there differs from what should be: nothing if every byte is the same."""
    command = ["diff", "-rq", "--exclude=.ossvp", str(source), str(filled)]
    lines = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
    return f"{len(lines)} files differ, first: {lines[0]}" if lines else ""


class Bench:
    """The machine, made ready."""

    def __init__(
        self, directory: Path, toolbox: Toolbox, endpoints: Endpoints, listing: str
    ) -> None:
        self.toolbox = toolbox
        self.endpoints = endpoints
        self.listing = listing
        self.data = directory / "data"
        self.sizes = {
            name: sum(one.size for one in data.objects(self.data, name)) for name in data.SIZES
        }
        self.places = {"tmpfs": directory / "tmpfs", "disk": directory / "disk"}
        self.places["disk"].mkdir(exist_ok=True)

    def row(self, row: Row, rounds: int, quick: bool) -> list[dict[str, Run]]:
        """Each tool once a round, another one first each time."""
        tools = [tool for tool in row.tools if tool.family in self.toolbox.programs]
        if quick:
            first = {tool.family: tool for tool in reversed(tools)}
            tools = [tool for tool in tools if tool is first[tool.family] or tool == row.ours]
        taken = []
        for number in range(rounds):
            turn = number % len(tools)
            if number == 0:
                self._run(row, tools[0])
            runs = {tool.name: self._run(row, tool) for tool in tools[turn:] + tools[:turn]}
            taken.append(runs)
            self._tell(row, number, runs)
        return taken

    def _tell(self, row: Row, number: int, runs: dict[str, Run]) -> None:
        print(f"{row.name}, round {number + 1}")
        for name, run in runs.items():
            said = run.get("failed") or (
                f"{run['seconds_synced']:7.2f} s  all {run['cpu_all']:6.2f} s  client"
                f" {run['cpu_client']:6.2f} s  {run['peak_rss_bytes'] / 2**20:5.0f} MiB"
            )
            print(f"  {name:45} {said}", flush=True)

    def _run(self, row: Row, tool: Tool) -> Run:
        endpoint = getattr(self.endpoints, row.port, self.listing)
        source = Source(row.bucket, endpoint, self.endpoints.ca)
        with machine_lock(), tempfile.TemporaryDirectory(prefix="ossvp-bench-") as name:
            home = Path(name)
            if row.place is None:
                settle()
                return self._usage(tool, source, home, home, [])
            if row.place == "slow":
                return self._on_slow_names(row, tool, source, home)
            filled = self.places[row.place] / "filled"
            filled.mkdir()
            try:
                size = self.sizes[row.bucket]
                settle()
                # tmpfs takes single pages, the page cache of a disk large ones where it can, and
                # the kernel keeps free ones apart
                touch_memory(size + size // 4, row.place == "disk")
                self.endpoints.limited_log.write_text("")
                sync = ["--sync", str(filled)] if row.place == "disk" else []
                run = self._usage(tool, source, filled, home, sync)
                if row.port == "limited":
                    answers = self.endpoints.limited_log.read_text().split()
                    run["requests"], run["refused"] = len(answers), answers.count("503")
                if differs := difference(self.data / row.bucket, filled):
                    run.setdefault("failed", differs)
                return run
            finally:
                shutil.rmtree(filled)

    def _on_slow_names(self, row: Row, tool: Tool, source: Source, home: Path) -> Run:
        place, calls = self.places["tmpfs"], dict[str, float]()
        with slow(place / "real", place / "slow", calls):
            filled = place / "slow" / "filled"
            filled.mkdir()
            settle()
            run = self._usage(tool, source, filled, home, [])
            # past the view, which would take its time again
            if differs := difference(self.data / row.bucket, place / "real" / "filled"):
                run.setdefault("failed", differs)
        run["seconds_of_calls"] = calls["seconds"]
        return run

    def _usage(self, tool: Tool, source: Source, filled: Path, home: Path, flags: list[str]) -> Run:
        command = self.toolbox.command(tool, source, filled)
        report = home / "report.json"
        if tool.family == "ossvp":
            command += ["--report", str(report)]
        errors = home / "errors"
        with memory_limit(tool.limit) as prefix, errors.open("w") as stderr:
            done = subprocess.run(
                ["timeout", str(PATIENCE), USAGE, *flags, "--", *prefix, *command],
                env=environment(source, home),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
            )
        if done.returncode == 124:
            return {"failed": f"not done after {PATIENCE} s"}
        run: Run = json.loads(done.stdout)
        if run["code"] != 0:
            last = errors.read_text().strip().split("\n")[-1]
            run["failed"] = f"ended with {run['code']}: {last[:200]}"
        if report.exists():
            run["report"] = json.loads(report.read_text())["figures"]
        return run
