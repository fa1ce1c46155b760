"""Shared parts of the status models: the base class, and enums that have no counterpart in the core."""

from __future__ import annotations

from enum import Enum

from pydantic import BaseModel, ConfigDict


class StatusModel(BaseModel):
    """Base of all status models: frozen; fields with a default are always serialised."""

    # `defer_build`: the validators of the status are made when the console's handlers are loaded.
    model_config = ConfigDict(frozen=True, json_schema_serialization_defaults_required=True, defer_build=True)


class TransportKind(Enum):
    """What carries the traffic to a peer: a lane (TLS over TCP) or streams of the QUIC connection."""

    LANE = "lane"
    QUIC = "quic"


class Modality(Enum):
    """A kind of input that a model accepts."""

    TEXT = "text"
    IMAGE = "image"


def transport_kind(text: str) -> TransportKind | None:
    """The transport called `text`; None if no connection has been used yet (the empty string)."""
    return TransportKind(text) if text else None


def input_modalities(vision: bool | None) -> list[Modality] | None:
    """What a model accepts; None if unknown."""
    if vision is None:
        return None
    return [Modality.TEXT, Modality.IMAGE] if vision else [Modality.TEXT]
