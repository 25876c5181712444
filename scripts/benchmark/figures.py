"""What the figures of a row say: medians, spreads, ratios, and which goals are met."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from .measure import Run
from .rows import Goal, Row
from .servers import ADMITTED

Rounds = list[dict[str, Run]]

PEERS = ("s5cmd", "rclone", "juicefs")


@dataclass(frozen=True)
class Verdict:
    """How ours compares, with what, and whether that meets the goal."""

    goal: Goal
    ratio: float
    against: str
    met: bool


def seconds(run: Run) -> float:
    # until synced, where that was asked for
    return run["seconds_synced"]


def cpu(run: Run) -> float:
    return run["cpu_all"]


def family(tool: str) -> str:
    return tool.split(" ")[0]


class Figures:
    """The rounds of one row."""

    def __init__(self, row: Row, rounds: Rounds) -> None:
        self.row = row
        self.rounds = rounds
        self.ours = row.ours.name
        self.failed = {
            name: run["failed"] for runs in rounds for name, run in runs.items() if "failed" in run
        }
        named = [tool.name for tool in row.tools]
        # in the order in which they are listed
        self.tools = [name for name in named if name in rounds[0] and name not in self.failed]
        self.peers = [name for name in self.tools if family(name) in PEERS]

    def of(self, tool: str, figure: Callable[[Run], float]) -> list[float]:
        return [figure(runs[tool]) for runs in self.rounds]

    def median(self, tool: str, figure: Callable[[Run], float]) -> float:
        return median(self.of(tool, figure))

    def peak(self, tool: str) -> float:
        """In MiB, the highest of all rounds: a bound must hold each time."""
        return max(self.of(tool, lambda run: run["peak_rss_bytes"])) / 2**20

    @property
    def fastest_peer(self) -> str | None:
        return min(self.peers, key=lambda peer: self.median(peer, seconds), default=None)

    def ratio(self, tool: str, figure: Callable[[Run], float]) -> float:
        """How many times ours it took: in each round, and of these the median."""
        pairs = zip(self.of(tool, figure), self.of(self.ours, figure))
        return median(theirs / max(ours, 1e-9) for theirs, ours in pairs)

    @property
    def wall(self) -> Verdict | None:
        """How many times faster ours is."""
        goal = self.row.wall
        if goal is None or self.ours in self.failed:
            return None
        if goal.against == "admitted":
            rates = self.of(self.ours, lambda run: run["report"]["objects_fetched"] / seconds(run))
            ratio, against = median(rates) / ADMITTED, f"{ADMITTED:,} objects a second"
        elif goal.against == "calls":
            ratio = median(self.of(self.ours, lambda run: run["seconds_of_calls"] / seconds(run)))
            least = self.median(self.ours, lambda run: run["seconds_of_calls"])
            against = f"its calls, served side by side: {least:.2f} s"
        else:
            other = self.fastest_peer if goal.against == "fastest peer" else goal.against
            if other not in self.tools:
                return None
            ratio = self.ratio(other, seconds)
            against = f"{other}: {self.median(other, seconds):.2f} s"
        return Verdict(goal, ratio, against, round(ratio, 2) >= goal.factor)

    @property
    def cpu(self) -> Verdict | None:
        """How many times as much CPU ours takes as the one that takes least."""
        goal = self.row.cpu
        if goal is None or self.ours in self.failed:
            return None
        wanted = PEERS if goal.against == "peers" else (goal.against,)
        ratios = {1 / self.ratio(t, cpu): t for t in self.tools if family(t) in wanted}
        if not ratios:
            return None
        ratio = max(ratios)
        return Verdict(goal, ratio, ratios[ratio], round(ratio, 2) <= goal.factor)

    @property
    def memory_met(self) -> bool | None:
        if self.row.memory is None or self.ours in self.failed:
            return None
        return self.peak(self.ours) < self.row.memory
