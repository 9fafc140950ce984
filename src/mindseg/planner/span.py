"""Figures with error bars."""
from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Span:
    """A figure that is not known exactly.

    Attributes:
        value: Most likely value.
        low: Smallest value to expect.
        high: Largest value to expect.
    """
    value: float
    low: float
    high: float

    @classmethod
    def within(cls, value: float, factor: float) -> Span:
        """A figure known within a factor.

        Args:
            value: Most likely value, at least 0.
            factor: The limits are ``value / factor`` and ``value * factor``; at least 1.
        """
        return cls(value, value / factor, value * factor)

    def __add__(self, other: Span) -> Span:
        """Sum; its limits are the sums of the limits."""
        return Span(self.value + other.value, self.low + other.low, self.high + other.high)

    def __mul__(self, factor: float) -> Span:
        """Product with an exact number, at least 0."""
        return Span(self.value * factor, self.low * factor, self.high * factor)

    def __rtruediv__(self, number: float) -> Span:
        """Exact number divided by this figure: the time of an amount at this rate."""
        return Span(number / self.value, number / self.high, number / self.low)

    def at_least(self, other: Span) -> Span:
        """The larger of two figures."""
        return Span(max(self.value, other.value), max(self.low, other.low), max(self.high, other.high))

    def text(self, unit: str) -> str:
        """Writes the figure with its limits, such as ``0.20 s (0.10 to 0.40)``; two digits each.

        Args:
            unit: Unit of the three numbers.
        """
        return f"{two_digits(self.value)} {unit} ({two_digits(self.low)} to {two_digits(self.high)})"


def two_digits(number: float) -> str:
    """Writes a number with two significant digits and without an exponent, such as ``0.20``, ``7.4`` or ``1300``."""
    if number == 0:
        return "0"
    digits = int(f"{number:.1e}".split("e")[1])     # after rounding: 9.96 has 1
    return f"{round(number, 1 - digits):.{max(0, 1 - digits)}f}"
