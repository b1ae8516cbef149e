"""Warnings where NFA does nothing, guesses or falls back: once per cause, with count and remedy."""

import sys
import warnings

import torch

INACTIVE = ("not finite", "no modes")  # causes for which images come back as they went in
CAUSES = (*INACTIVE, "few modes", "guessed label", "other")
FEW = 0.01  # share of images that may come back as they went in without a word


class NFAWarning(UserWarning):
    """Says that NFA did nothing to some images, guessed, or fell back, and what to do about it.

    ``warnings.filterwarnings("error", category=NFAWarning)`` makes all of them errors, the
    transform's `strict=True` those of one transform.

    >>> issubclass(NFAWarning, UserWarning)
    True
    """


class NFAError(ValueError):
    """Says what is wrong with the data or the settings, and what to do about it.

    >>> issubclass(NFAError, ValueError)
    True
    """


def warn(message: str) -> None:
    """Warns in this package's category, at the line outside of it that led here.

    >>> with warnings.catch_warnings(record=True) as said:
    ...     warn("no labels came")
    >>> said[0].category.__name__
    'NFAWarning'
    """
    depth, frame = 2, sys._getframe(1)
    own = __name__.partition(".")[0]
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in (own, "torch"):
        depth, frame = depth + 1, frame.f_back
    warnings.warn(message, NFAWarning, stacklevel=depth)


class Notices:
    """Counts images by cause, and says each cause once.

    Args:
        strict: raise an `NFAError` instead.

    >>> notices = Notices()
    >>> with warnings.catch_warnings(record=True) as said:
    ...     warnings.simplefilter("always")
    ...     for _ in range(3):
    ...         notices.say("no modes", "class 7 has one image; it comes back unchanged", images=2)
    >>> len(said), notices.count("no modes")
    (1, 6)
    """

    def __init__(self, strict: bool = False):
        self.strict = strict
        self._said: set[str] = set()
        self._counts = torch.zeros(len(CAUSES), dtype=torch.int64)

    def say(self, cause: str, message: str, images: int = 1) -> None:
        """Counts `images`, or 0, for a cause of `CAUSES`; at its first time, warns or raises."""
        if self.strict:
            raise NFAError(f"{message} (an error, as strict=True asks for)")
        position = CAUSES.index(cause)
        first = cause not in self._said and not self._counts[position]
        self._said.add(cause)
        self._counts[position] += images
        if first:
            warn(message)

    def count(self, *causes: str) -> int:
        """How many images were counted for these causes."""
        return sum(int(self._counts[CAUSES.index(cause)]) for cause in causes)

    def share(self) -> "Notices":
        """Counts together with the worker processes that get a copy from now on; returns self."""
        self._counts.share_memory_()
        return self

    def summary(self, seen: int, before: "Notices | None" = None) -> str:
        """One line on how many of `seen` images NFA left as they were, by cause; "" for none.

        Args:
            before: a deep copy of these notices; what it had counted already is left out.

        >>> Notices().summary(100)
        ''
        """
        counts = {c: self.count(c) - (before.count(c) if before else 0) for c in INACTIVE}
        parts = ", ".join(f"{n} for {cause}" for cause, n in counts.items() if n)
        total = sum(counts.values())
        share = f"{total} of {seen} images as they were ({total / max(seen, 1):.1%})"
        return f"NFA left {share}: {parts}" if total else ""
