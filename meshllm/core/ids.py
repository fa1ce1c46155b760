"""The ids of nodes and meshes, apart from what is said about them."""

from __future__ import annotations

from typing import NewType

# An Ed25519 public key, 32 bytes.
NodeId = NewType("NodeId", bytes)
NODE_ID_BYTES = 32
# A mesh's id: 16 bytes, made at random by the node that founded it.
MeshId = NewType("MeshId", bytes)
MESH_ID_BYTES = 16
