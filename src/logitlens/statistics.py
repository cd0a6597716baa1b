"""The table of statistics: one record for each array of a `Reading` and for each colour of a view.

Everything that names statistics derives from `TABLE`: the arrays of `Reading` and their files, the
colours of the terminal, the figure and the page, and the choices of `--color`. To add a statistic,
add a record here and compute it in `readout/`; no view and no format needs to know.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from logitlens.errors import FormatError

if TYPE_CHECKING:  # numpy is imported by those who compute, so that --help need not wait for it
    import numpy as np
    from numpy.typing import NDArray

    from logitlens.reading import Reading

Scale = Literal["", "probability", "linear", "log", "rank", "yes or no"]


@dataclass(frozen=True)
class Statistic:
    """One array, or one thing that a view can show in a cell.

    name       of the array in a Reading, a column in Parquet, a field of a page
    axes       L layers, T positions, K top tokens, C candidates, M tracked tokens: "LT" has one
               number for each cell, "LTK" K of them, "T" one for each position
    dtype      numpy's name of it
    unit       "nats", "id", "rank", …
    label      what a legend says, without the unit
    color      the name by which people choose it as a colour; "": not a colour
    scale      how a colour runs: "probability" 0 … 1 (of a log-probability), "linear" from 0, "log"
               from 0.01, "rank" logarithmic from 1, "yes or no"; nan, and a rank of 0, are missing
    confident  which end means that the layer is sure of its answer
    optional   a file or a reading may lack it: its array is empty then
    derive     computes a colour that is not stored, (L, T)
    """

    name: str
    axes: str
    dtype: str
    unit: str = ""
    label: str = ""
    color: str = ""
    scale: Scale = ""
    confident: Literal["low", "high"] = "high"
    optional: bool = False
    derive: Callable[[Reading], NDArray[Any]] | None = None

    @property
    def per_cell(self) -> bool:
        """Whether there is a number for each layer × position (else for each position or token)."""
        return self.axes.startswith("LT")

    @property
    def is_float(self) -> bool:
        return self.dtype.startswith("float")

    def absent(self, reading: Reading) -> bool:
        """Whether a reading has nothing of it to be written: texts of a prompt that was no chat."""
        return self.dtype == "str" and not (getattr(reading, self.name) != "").any()

    def values(self, reading: Reading) -> NDArray[np.float64]:
        """(L, T) what a cell shows: the first slot where there are several; nan: nothing."""
        import numpy as np

        array = self.derive(reading) if self.derive else getattr(reading, self.name)
        if array.ndim == 3:
            array = array[..., 0] if array.shape[-1] else np.full(array.shape[:2], np.nan)
        values = array.astype(np.float64)
        if self.scale == "probability":
            return np.exp(values)
        if self.scale == "rank":
            values[values < 1] = np.nan
        return values


def _rank_of_the_final_token(reading: Reading) -> NDArray[Any]:
    """Exact where candidates were recorded; else only inside the top k, nan beyond."""
    import numpy as np

    if reading.candidate_ranks.shape[-1]:
        return reading.candidate_ranks[..., 0]
    same_LTK = reading.top_ids == reading.top_ids[-1, :, :1]
    return np.where(same_LTK.any(-1), 1 + same_LTK.argmax(-1), np.nan)


def _agreement(reading: Reading) -> NDArray[Any]:
    import numpy as np

    top_LT = reading.top_ids[:, :, 0]
    return np.where(top_LT < 0, np.nan, top_LT == top_LT[-1])


TABLE: tuple[Statistic, ...] = (
    Statistic("ids", "T", "int32", "id"),
    Statistic("role", "T", "str", optional=True),
    Statistic("section", "T", "str", optional=True),
    Statistic("generated", "T", "bool", optional=True),
    Statistic("top_ids", "LTK", "int32", "id"),
    Statistic("top_logprobs", "LTK", "float32", "nats", "probability of the top token",
              color="prob", scale="probability"),
    Statistic("entropy", "LT", "float32", "nats", "entropy",
              color="entropy", scale="linear", confident="low"),
    Statistic("kl", "LT", "float32", "nats", "KL to the final layer",
              color="kl", scale="log", confident="low"),
    Statistic("next_ids", "T", "int32", "id"),
    Statistic("next_ranks", "LT", "int32", "rank", "rank of the token that follows",
              color="rank", scale="rank", confident="low"),
    Statistic("next_logprobs", "LT", "float32", "nats", "probability of the token that follows",
              color="next", scale="probability"),
    Statistic("final", "LT", "int32", "rank", "rank of the answer, the final top token",
              color="final", scale="rank", confident="low", derive=_rank_of_the_final_token),
    Statistic("agree", "LT", "bool", "", "same top token as the final layer",
              color="agree", scale="yes or no", derive=_agreement),
    Statistic("candidate_ids", "TC", "int32", "id", optional=True),
    Statistic("candidate_logprobs", "LTC", "float32", "nats", optional=True),
    Statistic("candidate_ranks", "LTC", "int32", "rank", optional=True),
    Statistic("track_ids", "M", "int32", "id"),
    Statistic("track_logprobs", "LTM", "float32", "nats"),
    Statistic("track_ranks", "LTM", "int32", "rank"),
)  # fmt: skip


def stored() -> list[Statistic]:
    """Those that a Reading holds as arrays."""
    return [statistic for statistic in TABLE if statistic.derive is None]


def colors() -> list[str]:
    """The names by which a view's colour is chosen."""
    return [statistic.color for statistic in TABLE if statistic.color]


def by_color(color: str) -> Statistic:
    """The statistic that a colour shows. Raises FormatError for a name that is not a colour."""
    for statistic in TABLE:
        if statistic.color and statistic.color == color:
            return statistic
    raise FormatError(f"cannot colour by {color!r}: expected one of {', '.join(colors())}")
