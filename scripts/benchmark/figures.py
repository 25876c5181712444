"""What the figures of a row say: medians, spreads, ratios, and which goals are met."""

from collections.abc import Callable
from dataclasses import dataclass
from math import comb
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
    # of each round
    ratios: list[float]
    against: str
    met: bool

    @property
    def ratio(self) -> float:
        return median(self.ratios)

    @property
    def between(self) -> tuple[float, float]:
        """Where the median lies, with 19 chances of 20.

        By the order of the ratios alone, whatever their distribution; of 5 the least and the most,
        which is 15 chances of 16.
        """
        ordered, rounds = sorted(self.ratios), len(self.ratios)
        outside = [sum(comb(rounds, k) for k in range(n + 1)) / 2**rounds for n in range(rounds)]
        dropped = sum(1 for chance in outside[1:] if chance <= 0.025)
        return ordered[dropped], ordered[-1 - dropped]


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
        """The one that compares best with ours, round by round."""
        return min(self.peers, key=lambda peer: self.ratio(peer, seconds), default=None)

    def ratios(self, tool: str, figure: Callable[[Run], float]) -> list[float]:
        """How many times ours it took, in each round."""
        pairs = zip(self.of(tool, figure), self.of(self.ours, figure))
        return [theirs / max(ours, 1e-9) for theirs, ours in pairs]

    def ratio(self, tool: str, figure: Callable[[Run], float]) -> float:
        """The median of these."""
        return median(self.ratios(tool, figure))

    @property
    def wall(self) -> Verdict | None:
        """How many times faster ours is."""
        goal = self.row.wall
        if goal is None or self.ours in self.failed:
            return None
        if goal.against == "admitted":
            rates = self.of(self.ours, lambda run: run["report"]["objects_fetched"] / seconds(run))
            ratios, against = [rate / ADMITTED for rate in rates], f"{ADMITTED:,} objects a second"
        elif goal.against == "calls":
            ratios = self.of(self.ours, lambda run: run["seconds_of_calls"] / seconds(run))
            least = self.median(self.ours, lambda run: run["seconds_of_calls"])
            against = f"its calls, served side by side: {least:.2f} s"
        else:
            other = self.fastest_peer if goal.against == "fastest peer" else goal.against
            if other not in self.tools:
                return None
            ratios = self.ratios(other, seconds)
            against = f"{other}: {self.median(other, seconds):.2f} s"
        return Verdict(goal, ratios, against, round(median(ratios), 2) >= goal.factor)

    @property
    def cpu(self) -> Verdict | None:
        """How many times as much CPU ours takes as the one that takes least."""
        goal = self.row.cpu
        if goal is None or self.ours in self.failed:
            return None
        wanted = PEERS if goal.against == "peers" else (goal.against,)
        others = [tool for tool in self.tools if family(tool) in wanted]
        if not others:
            return None
        least = min(others, key=lambda tool: self.ratio(tool, cpu))
        ratios = [1 / ratio for ratio in self.ratios(least, cpu)]
        return Verdict(goal, ratios, least, round(median(ratios), 2) <= goal.factor)

    @property
    def memory_met(self) -> bool | None:
        if self.row.memory is None or self.ours in self.failed:
            return None
        return self.peak(self.ours) < self.row.memory
