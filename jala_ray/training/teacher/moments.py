"""Ridge regression from sums: what is added up of chunks is enough to fit, to choose a penalty by held-out clips, and to tell their R2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

FOLDS = 5
"""Parts of the clips, each held out in turn."""
PENALTIES = tuple(10.0**power for power in range(-6, 1))
"""Tried for the ridge; inputs have a mean square of at most 1. With less, weights grow until float32 cannot add them up."""
FEWEST = 20
"""Chunks that a domain needs for a figure of its own."""
STILL = 1e-12
"""Variance of a target that does not move."""


@dataclass
class Sums:
    """Of inputs (E, M) and targets (E, T), both with a column of ones put before."""

    count: float
    inputs: Tensor
    """(M + 1, M + 1)."""
    both: Tensor
    """(M + 1, T)."""
    squares: Tensor
    """(T,)."""

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            self.count + other.count,
            self.inputs + other.inputs,
            self.both + other.both,
            self.squares + other.squares,
        )

    def __sub__(self, other: Sums) -> Sums:
        return self + other * -1.0

    def __mul__(self, factor: float) -> Sums:
        return Sums(self.count * factor, self.inputs * factor, self.both * factor, self.squares * factor)


@dataclass
class Moments:
    """Sums by (domain, fold), in float64."""

    of: dict[tuple[str, int], Sums] = field(default_factory=dict)

    def add(self, x: Tensor, y: Tensor, domain: Sequence[str], fold: Tensor) -> None:
        """Inputs (E, M) and targets (E, T) of chunks with their clips' domains and folds (E,)."""
        for name in sorted(set(domain)):
            own = torch.tensor([one == name for one in domain])
            for number in range(FOLDS):
                chosen = own & (fold == number)
                if chosen.any():
                    self._add((name, number), x[chosen], y[chosen])

    def _add(self, key: tuple[str, int], x: Tensor, y: Tensor) -> None:
        """In float64: float32 products of many chunks are no longer positive definite at the smallest penalties."""
        ones, y = torch.cat([x.new_ones(len(x), 1), x], dim=1).double(), y.double()
        if key not in self.of:
            sizes = (ones.shape[1], ones.shape[1]), (ones.shape[1], y.shape[1]), (y.shape[1],)
            self.of[key] = Sums(0, *(torch.zeros(size, dtype=torch.float64) for size in sizes))
        sums = self.of[key]
        sums.count += len(x)
        sums.inputs.addmm_(ones.T, ones)
        sums.both.addmm_(ones.T, y)
        sums.squares += y.square().sum(0)

    @property
    def domains(self) -> list[str]:
        return sorted({domain for domain, _ in self.of})

    def count(self, domain: str) -> int:
        return int(sum(sums.count for (name, _), sums in self.of.items() if name == domain))

    def whole(self, domain: str) -> Sums:
        """Of all folds of a domain."""
        first, *rest = (sums for (name, _), sums in self.of.items() if name == domain)
        return sum(rest, start=first)

    def weights(self, balance: float) -> dict[str, float]:
        """Of a chunk of each domain: 0 takes them as they are, 1 gives all domains the same sum."""
        counts = {domain: self.count(domain) for domain in self.domains}
        even = sum(counts.values()) / len(counts)
        return {domain: (even / count) ** balance for domain, count in counts.items()}

    def mixed(self, balance: float, without: int | None = None) -> Sums:
        """Of all domains, weighted, but for a fold; divided by what they weigh."""
        parts = []
        for domain, weight in self.weights(balance).items():
            left = self.of.get((domain, without)) if without is not None else None
            whole = self.whole(domain)
            parts.append((whole if left is None else whole - left) * weight)
        total = sum(parts[1:], start=parts[0])
        return total * (1 / total.count)


def solve(sums: Sums, penalty: float) -> Tensor:
    """(M + 1, T): the intercept's row, which is not penalised, and the slopes."""
    penalties = torch.full((len(sums.inputs),), penalty, dtype=torch.float64)
    penalties[0] = 1e-12
    return torch.cholesky_solve(sums.both, torch.linalg.cholesky(sums.inputs + penalties.diag()))


def errors(sums: Sums, solution: Tensor) -> Tensor:
    """(T,) sum of squared errors of a solution over the chunks that were added up."""
    return sums.squares - 2 * (solution * sums.both).sum(0) + (solution * (sums.inputs @ solution)).sum(0)


def spread(sums: Sums) -> Tensor:
    """(T,) sum of squares about the mean."""
    return sums.squares - sums.both[0].square() / sums.count


@dataclass(frozen=True)
class Chosen:
    """What the held-out clips prefer, and what they say of it."""

    score: float
    """Mean of `r2` over domains."""
    penalty: float
    balance: float
    r2: Mapping[str, Mapping[str, float]]
    """Domain -> name of some targets -> their R2 on held-out clips, weighted by variance."""


def choose(moments: Moments, targets: Mapping[str, slice], by: str, balances: Sequence[float] = (0.0, 1.0)) -> Chosen:
    """The penalty and balance with which the targets `by` of held-out clips are told best, a mean over domains with `FEWEST` chunks."""
    shown = [domain for domain in moments.domains if moments.count(domain) >= FEWEST] or moments.domains
    best, wholes = None, {domain: moments.whole(domain) for domain in shown}
    for balance in balances if len(moments.domains) > 1 else balances[:1]:
        lost = {penalty: {domain: 0.0 * wholes[domain].squares for domain in shown} for penalty in PENALTIES}
        for fold in range(FOLDS):
            seen = moments.mixed(balance, fold)
            for penalty in PENALTIES:
                solution = solve(seen, penalty)
                for domain in shown:
                    if (domain, fold) in moments.of:
                        lost[penalty][domain] += errors(moments.of[domain, fold], solution)
        for penalty, of in lost.items():
            r2 = {domain: _r2(wholes[domain], missed, targets) for domain, missed in of.items()}
            score = sum(found[by] for found in r2.values()) / len(r2)
            if best is None or score > best.score:
                best = Chosen(score, penalty, balance, r2)
    assert best is not None
    return best


def without_each(moments: Moments, found: Chosen) -> list[Tensor]:
    """The solution without each of the folds."""
    return [solve(moments.mixed(found.balance, fold), found.penalty) for fold in range(FOLDS)]


def _r2(sums: Sums, missed: Tensor, targets: Mapping[str, slice]) -> dict[str, float]:
    """0 of targets that do not move: there is nothing to tell."""
    known, still = spread(sums), STILL * sums.count
    return {
        name: float(1 - missed[of].sum() / known[of].sum()) if known[of].sum() > still else 0.0
        for name, of in targets.items()
    }
