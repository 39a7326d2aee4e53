"""``--spacing``: one number, three in one of two orders, as one word or three; or ``median`` or ``native``."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand

from medi3d.errors import ConfigError

HELP = (
    "Millimetres: 1.0, or three numbers in the order D H W (2.5 0.8 0.8; through-plane first), or x y z "
    "(0.8 0.8 2.5: a largest number that stands last is the through-plane one); or median, the data set's; or native, "
    "each case's own. [the task's own]"
)
_NAMES = ("median", "native")


class SpacingCommand(TyperCommand):
    """A command that takes ``--spacing 0.8 0.8 2.5``: the words become one value, ``"0.8 0.8 2.5"``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Join the numbers that follow ``--spacing`` before the options are read."""
        return super().parse_args(ctx, join_numbers(args))


def join_numbers(args: list[str]) -> list[str]:
    """Join the numbers behind each ``--spacing`` to one argument.

    Example:
        >>> join_numbers(["--spacing", "0.8", "0.8", "2.5", "--task", "demo"])
        ['--spacing', '0.8 0.8 2.5', '--task', 'demo']
    """
    joined: list[str] = []
    for word in args:
        if len(joined) > 1 and joined[-2] == "--spacing" and _are_numbers(joined[-1]) and _are_numbers(word):
            joined[-1] += f" {word}"
        else:
            joined.append(word)
    return joined


def parse_spacing(text: str) -> object:
    """Read the value of ``--spacing``.

    Returns:
        One number; three along (D, H, W); or ``"median"`` or ``"native"``.

    Raises:
        ConfigError: anything else, or three numbers of which the middle one alone is the largest.

    Example:
        >>> parse_spacing("2.5,0.8,0.8"), parse_spacing("0.8 0.8 2.5"), parse_spacing("1")
        ([2.5, 0.8, 0.8], [2.5, 0.8, 0.8], 1.0)
    """
    if text.strip() in _NAMES:
        return text.strip()
    numbers = [float(word) for word in _words(text)] if _are_numbers(text) else []
    if len(numbers) not in (1, 3) or not all(0 < number < float("inf") for number in numbers):
        raise ConfigError(
            f"--spacing {text}: give millimetres above 0, one number or three for D H W (2.5 0.8 0.8), "
            f"or {' or '.join(_NAMES)}"
        )
    if len(numbers) == 1:
        return numbers[0]
    first, middle, last = numbers
    if middle > max(first, last):
        raise ConfigError(
            f"--spacing {text}: the middle number is the largest, but the through-plane spacing comes first (D H W) or "
            "last (x y z)"
        )
    return numbers[::-1] if last > max(first, middle) else numbers


def _are_numbers(text: str) -> bool:
    try:
        return bool([float(word) for word in _words(text)])
    except ValueError:
        return False


def _words(text: str) -> list[str]:
    return text.replace(",", " ").split()
