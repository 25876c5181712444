"""What is measured, and what is hoped for: the rows of the table."""

from dataclasses import dataclass

from . import data
from .peers import Tool

OURS = Tool("ossvp")


@dataclass(frozen=True)
class Goal:
    """By what factor ours should compare with what: faster for time, at most for CPU."""

    factor: float
    against: str = "fastest peer"


@dataclass(frozen=True)
class Row:
    """One kind of work and who does it, first ours.

    Of each family the tool named first is the one that `--quick` runs.
    """

    name: str
    title: str
    bucket: str
    tools: tuple[Tool, ...]
    port: str = "plain"
    # tmpfs, disk (then everything is synced within the time), slow names, or nothing is written
    place: str | None = "tmpfs"
    wall: Goal | None = None
    cpu: Goal | None = None
    # MiB
    memory: int | None = None
    quick: bool = False

    @property
    def ours(self) -> Tool:
        """What the row is about."""
        return self.tools[0]


def _tools(s5cmd: list[str], rclone: list[str], juicefs: list[str]) -> tuple[Tool, ...]:
    """The peers with each of these flags; none are their defaults."""
    families = {"s5cmd": s5cmd, "rclone": rclone, "juicefs": juicefs}
    return tuple(Tool(family, flags) for family, several in families.items() for flags in several)


# what was fastest of all that was tried, and the defaults
_FEW_AT_ONCE = _tools(
    ["--numworkers 16", ""], ["--transfers 16 --ignore-checksum", ""], ["--threads 32", ""]
)

ROWS = [
    Row(
        "small",
        "10,000 × 16 KiB",
        "small",
        (OURS, Tool("floor"))
        + _tools(["--numworkers 32", ""], ["--transfers 32", ""], ["--threads 32", ""]),
        wall=Goal(2.5),
        cpu=Goal(1.6, "floor"),
        memory=64,
        quick=True,
    ),
    Row(
        "mixed",
        "1,000 around 1 MiB, 2 GiB",
        "mixed",
        (OURS, Tool("floor"), *_FEW_AT_ONCE),
        wall=Goal(1.2),
        cpu=Goal(1.15, "floor"),
        memory=64,
        quick=True,
    ),
    Row(
        "large",
        "4 × 1 GiB into memory",
        "large",
        (OURS, Tool("floor"), *_FEW_AT_ONCE),
        wall=Goal(1.0),
        cpu=Goal(1.0, "peers"),
        memory=64,
    ),
    Row(
        "disk",
        "4 × 1 GiB onto a disk, until synced",
        "large",
        (OURS, Tool("floor", "--direct"), *_FEW_AT_ONCE),
        place="disk",
        wall=Goal(1.2),
        cpu=Goal(0.8, "peers"),
        memory=96,
    ),
    Row(
        "cgroup",
        "the same within 1 GiB of memory",
        "large",
        (Tool("ossvp", limit=data.GIB), OURS),
        place="disk",
        wall=Goal(1.0, "ossvp"),
    ),
    Row(
        "tls",
        "1,000 around 1 MiB over TLS 1.3",
        "mixed",
        (OURS, *_FEW_AT_ONCE),
        port="tls",
        wall=Goal(1.2),
        cpu=Goal(1.0, "peers"),
        memory=80,
    ),
    Row(
        "small-delayed",
        "10,000 × 16 KiB, 20 ms and 100 MB/s a connection",
        "small",
        (OURS, Tool("floor", "--connections 256"))
        + _tools([""], ["--transfers 256"], ["--threads 256"]),
        port="delayed",
        wall=Goal(2.0),
        memory=96,
        quick=True,
    ),
    Row(
        "large-delayed",
        "4 × 1 GiB, 20 ms and 100 MB/s a connection",
        "large",
        (OURS, Tool("floor", "--connections 32 --part 16777216"))
        + _tools(
            ["--numworkers 1024"], ["--multi-thread-streams 16"], ["--threads 64", "--threads 32"]
        ),
        port="delayed",
        wall=Goal(1.0),
        memory=96,
    ),
    Row(
        "slow-names",
        f"10,000 × 16 KiB onto a file system with {data.SLOW_MS} ms a call on names",
        "small",
        (OURS, *_tools(["--numworkers 64"], ["--transfers 64"], ["--threads 64"])),
        place="slow",
        # within 1.3 times of what it takes to serve the calls, as many at once as are served
        wall=Goal(0.77, "calls"),
    ),
    Row(
        "limited",
        "10,000 × 16 KiB, 2,000 requests a second admitted",
        "small",
        (OURS, *_tools([""], [""], [""])),
        port="limited",
        wall=Goal(0.9, "admitted"),
    ),
    Row(
        "million",
        "1,000,000 objects, only listed",
        "million",
        (Tool("ossvp", "--dry-run"), Tool("pages")),
        port="listing",
        place=None,
        wall=Goal(0.9, "pages"),
        memory=64,
        quick=True,
    ),
]
