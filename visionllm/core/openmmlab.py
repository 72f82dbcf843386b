"""Configurations of OpenMMLab: plain values are read as that, and code is run only where it is trusted."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import yaml

from visionllm.core.errors import ConfigError


def read_config(path: Path, *, trust: bool, cure: str, source: str = "") -> dict[str, Any]:
    """The keys of a configuration file of OpenMMLab.

    YAML and JSON do not go through mmengine: its loader runs what tags of YAML name, and what they build upon may be
    Python.

    Args:
        trust: whether a Python file may run.
        cure: what says so, for the error.
        source: what comes before the path in errors.

    Raises:
        ConfigError: it is not there, is Python and not trusted, builds on another file, or is no configuration.
    """
    named = f"{source}{path}"
    if not path.is_file():
        raise ConfigError(f"{named}: no such file")
    if path.suffix == ".py":
        if not trust:
            raise ConfigError(f"{named} is Python, and to read it is to run it; read it yourself, then {cure}")
        return _run(path, named)
    try:
        text = path.read_text(encoding="utf-8")
        held = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{named}: not plain YAML or JSON ({' '.join(str(error).split())})") from None
    if not isinstance(held, dict) or "_base_" in held:
        raise ConfigError(f"{named}: write its base into it (Config.dump of mmengine does); one file holds all keys")
    return held


def _run(path: Path, named: str) -> dict[str, Any]:
    try:
        reader = importlib.import_module("mmengine.config").Config
    except ImportError as error:
        raise ConfigError(f"mmengine cannot be imported ({error}); docs/bridges.md says how to install it") from None
    try:
        return reader.fromfile(str(path)).to_dict()
    except Exception as error:  # noqa: BLE001 (lines of somebody's Python are run, and may raise anything)
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"{named}: not a configuration that mmengine reads ({said})") from None
