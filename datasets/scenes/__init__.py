"""Procedural scenes: streets, tables and meadows drawn from a seed, with exact boxes, masks, keypoints and text."""

from __future__ import annotations

from .catalogue import CATEGORIES, SPECIAL, STUFF, WORLDS, Category
from .edits import SceneEdit, draw_edits
from .scene import Scene, SceneObject, draw_scene

__all__ = [
    "CATEGORIES", "SPECIAL", "STUFF", "WORLDS", "Category", "Scene", "SceneEdit", "SceneObject", "draw_edits",
    "draw_scene",
]  # fmt: skip
