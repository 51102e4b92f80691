"""How an artifact lies in its file: an archive, with or without a top folder, or one program."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from kedge.model.base import Frozen
from kedge.model.notation import refuse

ProgramPath = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9._+-]*(/[A-Za-z0-9_][A-Za-z0-9._+-]*)*$",
        max_length=255,
        description="a path in the release, such as bin/geth",
    ),
]


class Packing(Frozen):
    """``strip`` is how many leading directories of an archive's names are left out.

    ``program``: the artifact is one file and no archive; it lies in the release under this path, and may be executed.
    """

    strip: Annotated[int, Field(ge=0, le=16)] = 0
    program: ProgramPath | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if self.program is not None and self.strip:
            refuse([(("strip",), "a single file has no directories; take strip or program out")])
        return self
