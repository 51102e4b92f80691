"""Scenes of the spine, for runs that go by a signed repository."""

from __future__ import annotations

from tests.spine.conftest import stage, staged

__all__ = ["stage", "staged"]
