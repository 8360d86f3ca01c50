"""What a run costs on spot machines and on demand, by prices and rates that you give: `python -m benchmarks.spot --hours 68 ...`.

    goodput = 1 / (1 + rate x nodes x (lost + start))       rate: a node's interruptions an hour; lost, start: hours
    cost    = nodes x GPUs x price x hours / goodput

An interruption of any node stops the whole run: what was trained since the newest checkpoint is lost, and a start is waited for.
A run whose number of workers may change waits for less. docs/guides/cost.md has the words.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass


@dataclass(frozen=True)
class Interruptions:
    """Of a run on so many nodes."""

    nodes: int
    per_node_hour: float
    lost_s: float
    """Trained and lost, at each."""
    start_s: float
    """From an interruption until steps are trained again."""

    @property
    def goodput(self) -> float:
        """Share of the time in which steps that count are trained."""
        return 1.0 / (1.0 + self.per_node_hour * self.nodes * (self.lost_s + self.start_s) / 3600)


def cost(hours: float, gpus: int, price: float, goodput: float) -> float:
    """Of `hours` of training that counts, in the price's currency."""
    return gpus * price * hours / goodput


def rate_where_equal(price: float, spot_price: float, nodes: int, lost_s: float, start_s: float) -> float:
    """A node's interruptions an hour at which spot costs as much as on demand."""
    return (price / spot_price - 1.0) * 3600 / (nodes * (lost_s + start_s))


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--hours", type=float, required=True, help="of training, as `jala pretrain --dry-run` tells")
    found.add_argument("--gpus", type=int, required=True)
    found.add_argument("--nodes", type=int, required=True)
    found.add_argument("--price", type=float, required=True, help="of a GPU-hour on demand")
    found.add_argument("--spot-price", type=float, required=True, help="of a GPU-hour on spot")
    found.add_argument("--per-node-hour", type=float, required=True, help="interruptions of a node in an hour")
    found.add_argument(
        "--lost-s", type=float, required=True, help="half of a checkpoint's interval; with a notice, a save"
    )
    found.add_argument("--start-s", type=float, required=True, help="until steps are trained again")
    return found


def main(words: list[str] | None = None) -> None:
    a = parser().parse_args(words)
    good = Interruptions(a.nodes, a.per_node_hour, a.lost_s, a.start_s).goodput
    demand, spot = cost(a.hours, a.gpus, a.price, 1.0), cost(a.hours, a.gpus, a.spot_price, good)
    print(f"on demand {demand:,.0f} in {a.hours:,.0f} h")
    print(f"spot      {spot:,.0f} in {a.hours / good:,.0f} h, goodput {good:.0%}: {spot / demand:.0%} of it")
    equal = rate_where_equal(a.price, a.spot_price, a.nodes, a.lost_s, a.start_s)
    print(
        f"equal at {equal:.2g} interruptions of a node an hour, one in {1 / equal:,.1f} h"
        if equal > 0
        else "spot is dearer"
    )


if __name__ == "__main__":
    main()
