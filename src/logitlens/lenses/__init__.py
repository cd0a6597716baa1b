"""Lenses: maps from the residual of a layer into the final basis."""

from logitlens.lenses.base import Lens, LogitLens
from logitlens.lenses.find import open_lens, resolve
from logitlens.lenses.header import Header
from logitlens.lenses.jacobian import JacobianLens, merge
from logitlens.lenses.store import save
from logitlens.lenses.tuned import TunedLens

__all__ = [
    "Header",
    "JacobianLens",
    "Lens",
    "LogitLens",
    "TunedLens",
    "merge",
    "open_lens",
    "resolve",
    "save",
]
