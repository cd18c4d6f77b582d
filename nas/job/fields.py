"""What the sections of a job are made of: their common base and the field types that read quantities."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict

from inlay.nas.quantities import parse_bytes, parse_count, parse_number, parse_seconds


class Section(BaseModel):
    """Frozen; an unknown key is a problem, never ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


Count = Annotated[int, BeforeValidator(parse_count)]
"""A whole number; `64k` and `4M` are read."""

Number = Annotated[float, BeforeValidator(parse_number)]
"""A finite number; `1e-3` is read though YAML takes it for text."""

Bytes = Annotated[int, BeforeValidator(parse_bytes)]
"""Bytes; `2GiB` is read."""

Seconds = Annotated[float, BeforeValidator(parse_seconds)]
"""Seconds; `60s` and `2min` are read."""
