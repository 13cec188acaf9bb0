"""Teachers made of somebody else's network, whose convention is an option."""

from __future__ import annotations

from abc import abstractmethod
from typing import Self

from freeflow_core.interfaces.teacher import Teacher
from freeflow_core.math.conversions import Convention


class ConvertibleTeacher(Teacher):
    """A teacher whose network is read with a convention that somebody had to state, and may have stated wrongly.

    ``freeflow teacher check`` reads such a network in other ways when the given one does not fit.

    Attributes:
        convention: how the network is asked, and what its answer means. The options that hold it are named as
            :meth:`freeflow_core.math.conversions.Convention.options` names them.
    """

    convention: Convention

    @abstractmethod
    def with_convention(self, convention: Convention) -> Self:
        """The same network, not a copy, read in another way."""
