"""Cards of data sets that OpenMMLab configurations define."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from visionllm.core.errors import ConfigError
from visionllm.core.openmmlab import read_config

# Split of a card -> where a configuration has it.
_LOADERS = {"train": "train_dataloader", "val": "val_dataloader", "test": "test_dataloader"}
# Data sets around a data set.
_AROUND = ("RepeatDataset", "ClassBalancedDataset", "MultiImageMixDataset")


def card_from_config(path: str | Path, *, trust: bool = False) -> dict[str, Any]:
    """The keys of a card for the data sets of an MMDetection or MMPose configuration: COCO's layout and Pascal VOC's.

    Args:
        trust: a Python configuration is code, and to read it is to run it.

    Raises:
        ConfigError: it is not there, not trusted, needs a toolbox that is missing, or defines another layout.
    """
    path = Path(path)
    config = read_config(path, trust=trust, cure="pass --trust")
    held = {split: config[key]["dataset"] for split, key in _LOADERS.items() if config.get(key)}
    if not held:
        raise ConfigError(f"{path}: no data loader in it; one of {', '.join(_LOADERS.values())} is expected")
    return _card(path, {split: _inner(dict(own), path) for split, own in held.items()})


def _card(path: Path, held: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    roots = {str(own.get("data_root") or "") for own in held.values()}
    if len(roots) > 1:
        raise ConfigError(f"{path}: its splits lie below {sorted(roots)}; a card has one root, so write one for each")
    posed = "codec" in path.read_text(encoding="utf-8") or any("data_mode" in own for own in held.values())
    splits, kinds = {}, set()
    for split, own in held.items():
        kind, keys = _split(own, path)
        kinds.add(kind)
        splits[split] = keys
    if len(kinds) > 1:
        raise ConfigError(f"{path}: its splits have the layouts {sorted(kinds)}; write a card for each")
    return {
        "name": path.stem.replace(" ", "_"), "task": "pose" if posed else "detection", "format": kinds.pop(),
        "root": roots.pop() or ".", "splits": splits,
    }  # fmt: skip


def _inner(own: dict[str, Any], path: Path) -> dict[str, Any]:
    """The data set inside those that repeat or mix it."""
    while own.get("type") in _AROUND:
        own = dict(own["dataset"])
    if own.get("type") in ("ConcatDataset", "CombinedDataset"):
        raise ConfigError(f"{path}: {own['type']} is a mixture; write a card for each of its data sets")
    return own


def _split(own: Mapping[str, Any], path: Path) -> tuple[str, dict[str, str]]:
    """Format and keys of one split."""
    prefix, listed = dict(own.get("data_prefix") or {}), str(own.get("ann_file") or "")
    if listed.endswith(".json"):
        return "coco", {"images": str(prefix.get("img") or prefix.get("img_path") or "."), "annotations": listed}
    if listed.endswith(".txt"):
        below = str(prefix.get("sub_data_root") or "").rstrip("/")
        folders = {"images": "JPEGImages", "annotations": "Annotations"}
        return "voc", {key: f"{below}/{name}".lstrip("/") for key, name in folders.items()} | {"list": listed}
    raise ConfigError(
        f"{path}: {own.get('type')} with ann_file {listed!r} is neither COCO's layout (.json) nor Pascal VOC's (.txt)"
    )
