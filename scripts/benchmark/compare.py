"""Compares two reports of `ossvp populate --report`: for pipelines that guard speed."""

import json
from pathlib import Path

# Each figure, and whether more of it is worse.
FIGURES = {
    "seconds": True,
    "cpu_seconds": True,
    "peak_rss_bytes": True,
    "bytes_per_second": False,
    "requests": True,
}


def _figures(path: Path) -> dict[str, float]:
    figures = json.loads(path.read_text())["figures"]
    figures["requests"] = sum(figures[f"requests_{kind}"] for kind in ("list", "get", "head"))
    figures["bytes_per_second"] = figures["bytes_fetched"] / max(figures["seconds"], 1e-9)
    return {name: figures[name] for name in FIGURES}


def compare(old: Path, new: Path, fail_above: float) -> bool:
    """Prints both; says whether no figure got worse than `fail_above` times the old one."""
    before, after = _figures(old), _figures(new)
    holds = True
    print(f"{'':18}{'old':>16}{'new':>16}{'worse by':>12}")
    for name, more_is_worse in FIGURES.items():
        pair = (after[name], before[name]) if more_is_worse else (before[name], after[name])
        ratio = pair[0] / pair[1] if pair[1] else (1.0 if pair[0] == pair[1] else float("inf"))
        holds &= ratio <= fail_above
        mark = "" if ratio <= fail_above else "  <-"
        print(f"{name:18}{before[name]:16,.2f}{after[name]:16,.2f}{ratio:11.2f}x{mark}")
    return holds
