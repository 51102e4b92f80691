"""Scenes of the spine, cleared away after each test."""

from __future__ import annotations

from tests.spine.conftest import stage, staged

__all__ = ["stage", "staged"]
