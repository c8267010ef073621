"""Counts choices compared with transformers, and those excused because float32 does not decide them.

An excuse is honest only while it is rare: a kernel that loses digits would otherwise turn every difference into "too
close to call". So a run of the tests fails when more than `MOST_EXCUSED` of its choices were excused. Imports neither
torch nor transformers.
"""

from __future__ import annotations

from dataclasses import dataclass, field

MOST_EXCUSED = 0.02
# Of a handful of choices a single excused one says nothing, so a share is judged from this many on.
ENOUGH = 500


@dataclass
class Tally:
    """How many choices were compared with the reference's, and a line for each that was excused."""

    choices: int = 0
    excused: list[str] = field(default_factory=list)

    def excess(self) -> str | None:
        """Returns what is wrong when too large a share was excused, or None."""
        if self.choices < ENOUGH or len(self.excused) <= MOST_EXCUSED * self.choices:
            return None
        share = len(self.excused) / self.choices
        return (
            f"{share:.1%} of {self.choices} choices were excused as too close to call, "
            f"allowed are {MOST_EXCUSED:.0%}"
        )


TALLY = Tally()
