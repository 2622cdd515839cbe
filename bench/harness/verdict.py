# SPDX-License-Identifier: MIT
"""Whether a figure holds a goal: held, missed or undecided, by one rule for all goals and both ways.

Allocators take turns, so what the machine does in a round falls on all of that round: a ratio is made within each round, and the figure is
the median of these; it is on them that the verdict stands. Of allocators that had more rounds than others, those that both had count. A
mean over rows is made of the rows' figures, and in each round. A figure is *held* when it holds, and so do so many of its rounds that
half of them or fewer would hold by chance in less than one case of twenty (a sign test); *missed* when it does not hold, and as many do
not; else *undecided*. Of nine rounds that is eight, of five all. Three rounds or four have to agree all, which by chance three do in one
case of eight. Fewer than three give no verdict, but for rows whose program repeats them within a round: then the least of one over the
most of the other has to be on the same side of the goal as the most over the least.
"""
import dataclasses
import math

from .measure import geometric_mean, median
from .plot import number

HELD, MISSED, UNDECIDED, UNKNOWN = "held", "**missed**", "undecided", "-"
LEAST_ROUNDS = 3
CHANCE = .05


@dataclasses.dataclass
class Figure:
    """What was measured: the median of the rounds (of a mean, the mean of such), each round, and the widest interval that repetitions within
    rounds give, if there are any."""
    value: float
    rounds: list
    widest: tuple = ()

    def scaled(self, factor):
        return Figure(self.value * factor, [one * factor for one in self.rounds], tuple(one * factor for one in self.widest))


def figure_of(cell):
    """The time of a cell of results.json. None where it has none."""
    samples = (cell or {}).get("time")
    return Figure(median(samples), samples, _extremes(cell)) if samples else None


def ratio_of(over, under, quantity="time"):
    """Of two cells, round by round, in the rounds that both have. None where one has no such samples."""
    pairs = list(zip(*((cell or {}).get(quantity, []) for cell in (over, under))))
    if not pairs or min(min(pair) for pair in pairs) <= 0:
        return None
    rounds = [above / below for above, below in pairs]
    high, low = _extremes(over), _extremes(under)
    widest = (high[0] / low[1], high[1] / low[0]) if high and low and low[0] > 0 and quantity == "time" else ()
    return Figure(median(rounds), rounds, widest)


def beyond(over, under):
    """By how much the time of one cell is more than another's, round by round."""
    rounds = [above - below for above, below in zip(*((cell or {}).get("time", []) for cell in (over, under)))]
    return Figure(median(rounds), rounds) if rounds else None


def mean_of(figures):
    """The geometric mean of ratios, and that of each round that all of them have. None of none."""
    if not figures:
        return None
    rounds = min(len(figure.rounds) for figure in figures)
    return Figure(geometric_mean(figure.value for figure in figures),
                  [geometric_mean(figure.rounds[i] for figure in figures) for i in range(rounds)])


def needed(rounds):
    """How many rounds of so many have to agree."""
    for agreeing in range(rounds // 2 + 1, rounds + 1):
        if sum(math.comb(rounds, more) for more in range(agreeing, rounds + 1)) < CHANCE * 2 ** rounds:
            return agreeing
    return rounds


def verdict(figure, limit, at_least=False):
    """held, missed or undecided: at most the limit, or at least."""
    def holds(value):
        return value >= limit if at_least else value <= limit
    good = holds(figure.value)
    if len(figure.rounds) < LEAST_ROUNDS:
        agree = bool(figure.widest) and all(holds(end) == good for end in figure.widest)
    else:
        agree = sum(holds(one) == good for one in figure.rounds) >= needed(len(figure.rounds))
    return UNDECIDED if not agree else HELD if good else MISSED


def spread(figure, unit=""):
    """What the verdict stands on, in words."""
    rounds = len(figure.rounds)
    if rounds < LEAST_ROUNDS and figure.widest:
        least, most = figure.widest
        return f"{number(least)} to {number(most)}{unit}, by repetitions"
    if rounds == 1:
        return "1 round"
    return f"{number(min(figure.rounds))} to {number(max(figure.rounds))}{unit}, {rounds} rounds"


def verdict_of_each(figures, limit):
    """Of rows that each have to hold: (the name of the row that tells most, its figure, the verdict of all). Missed by one is missed."""
    verdicts = [(verdict(figure, limit), figure, name) for name, figure in figures]
    for wanted in (MISSED, UNDECIDED, HELD):
        found = [(figure.value, name, figure) for said, figure, name in verdicts if said == wanted]
        if found:
            _, name, figure = max(found, key=lambda one: one[0])
            return name, figure, wanted
    return None, None, UNKNOWN


def _extremes(cell):
    extremes = cell.get("extremes")
    return (min(extremes), max(extremes)) if extremes else ()
