"""Axes: from values to places on the page, and which values to write there."""

import math
from collections.abc import Iterable

import attrs

from bitnet_cli.report.charts.chart_data import drawable


@attrs.frozen
class Scale:
    """Maps `low`..`high` to `start`..`end`, in units of the drawing."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (self._place(each) for each in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def _place(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def ticks(self, about: int = 5) -> list[float]:
        """Round values within the range."""
        return _log_ticks(self.low, self.high, about) if self.log else _ticks(self.low, self.high, about)


def fit(values: Iterable[float], start: float, end: float, *, log: bool = False, zero: bool = False) -> Scale:
    """A scale that holds all `values` (finite; at least one), from 0 where `zero`."""
    found = list(values)
    low, high = min(found), max(found)
    if log:
        return Scale(low / 1.12, high * 1.12, start, end, log=True)
    if zero:
        low = min(low, 0.0)
    if low == high:
        low, high = (low - 0.5 * abs(low), high + 0.5 * abs(high)) if low else (-1.0, 1.0)
    spare = 0.04 * (high - low)
    return Scale(low if zero and low == 0 else low - spare, high + spare, start, end)


def _ticks(low: float, high: float, about: int) -> list[float]:
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * nice for nice in (1, 2, 2.5, 5, 10) if power * nice >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def _log_ticks(low: float, high: float, about: int) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for nice in ((1, 2, 5), (1, 3), (1,)):
        found = [n * 10.0**decade for decade in decades for n in nice if low <= n * 10.0**decade <= high]
        if len(found) <= about + 1:
            break
    if len(found) >= 2:
        return found
    return [tick for tick in _ticks(low, high, about) if tick > 0]


def tick_text(value: float) -> str:
    """Short: 1500 → "1.5k", 0.00002 → "2e-5"."""
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:.4g}M"
    if size >= 1000:
        return f"{value / 1e3:.4g}k"
    if size and size < 1e-3:
        mantissa, _, power = f"{value:.2g}".partition("e")
        return f"{mantissa}e{int(power)}" if power else mantissa
    return f"{value:.4g}"


def wants_log(values: Iterable[float], ratio: float = 8.0) -> bool:
    """Whether values are so far apart that a linear axis would show only the largest."""
    found = [value for value in values if drawable(value)]
    return bool(found) and min(found) > 0 and max(found) / min(found) > ratio
