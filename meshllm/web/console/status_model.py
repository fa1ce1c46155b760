"""What all that the status says is made of."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class StatusModel(BaseModel):
    """A part of the status: never changed once it is made; what has a default is told all the same."""

    model_config = ConfigDict(frozen=True, json_schema_serialization_defaults_required=True)
