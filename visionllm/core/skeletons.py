"""Skeletons by name: ``configs/skeletons/<name>.yaml``, one for each list of keypoints that data sets share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

from pydantic import Field

from visionllm.core.config import Config, read_yaml, validate
from visionllm.core.errors import ConfigError, ShapeError, unknown_name
from visionllm.core.poses import Skeleton
from visionllm.core.resources import config_folder


class SkeletonFile(Config):
    """What a file says; edges are pairs of names."""

    keypoints: list[str] = Field(min_length=1)
    edges: list[tuple[str, str]] = Field(default_factory=list)
    sigmas: list[float] | None = None


def skeleton_names() -> tuple[str, ...]:
    """All skeletons, sorted."""
    return tuple(sorted(path.stem for path in config_folder("skeletons").glob("*.yaml")))


@cache
def load_skeleton(name: str) -> Skeleton:
    """The skeleton of a name.

    Raises:
        UnknownNameError: there is none; the message lists those there are.
        ConfigError: its file is wrong.
    """
    if name not in skeleton_names():
        raise unknown_name("skeleton", name, skeleton_names())
    path = config_folder("skeletons") / f"{name}.yaml"
    values = validate(SkeletonFile, read_yaml(path), source=str(path))
    words = tuple(values.keypoints)
    for edge in values.edges:
        for end in edge:
            if end not in words:
                raise ConfigError(f"{path}: edges: {end!r} is not among the keypoints")
    try:
        skeleton = Skeleton(
            name=name, keypoints=words, edges=tuple((words.index(a), words.index(b)) for a, b in values.edges),
            sigmas=None if values.sigmas is None else tuple(values.sigmas),
        )  # fmt: skip
        skeleton.flips  # noqa: B018 (a side without a partner is told here, not in the middle of a training)
    except ShapeError as error:
        raise ConfigError(f"{path}: {error}") from None
    return skeleton


def skeleton_of(name: str, keypoints: Sequence[str]) -> Skeleton:
    """The skeleton of points that somebody named: edges and sigmas of the first known one that has them all."""
    for known in skeleton_names():
        skeleton = load_skeleton(known)
        if set(keypoints) <= set(skeleton.keypoints):
            return replace(skeleton.named(keypoints), name=name)
    return Skeleton(name=name, keypoints=tuple(keypoints))
