"""What the bridges to configurable toolboxes share: settings, weights and errors."""

from __future__ import annotations

import importlib
import importlib.util
from collections import OrderedDict
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from visionllm.core.config import Config
from visionllm.core.errors import CheckpointError, ConfigError
from visionllm.core.openmmlab import read_config
from visionllm.decoders.bridges.base import BridgeConfig

# Packages of OpenMMLab that name their classes themselves, and packages whose classes need no scope.
_SCOPES = ("mmdet", "mmpose", "mmpretrain", "mmseg")
_SCOPELESS = ("mmcv", "mmengine", "torch")
# Keys of classes that read a configuration or a checkpoint of their own, or evaluate words.
_RUNNING = {"teacher_config", "teacher_ckpt", "teacher_cfg", "teacher_pretrained", "student_cfg", "warp_mode"}


class ToolboxConfig(BridgeConfig):
    """A network of a toolbox: by the toolbox's own keys, or by a configuration file of it."""

    network: dict[str, Any] | None = Field(
        None, description="keys of the network, as the toolbox's configuration has them"
    )
    config: str | None = Field(None, description="configuration file of the toolbox; a Python one runs as code")
    trust: bool = Field(False, description="whether a configuration file that runs as code may run")
    checkpoint: str | None = Field(None, description="weights of the network, a safetensors file")

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.network is None) == (self.config is None):
            raise ValueError("give either network or config")
        return self


class Published(Config):
    """A network of transformers, from its keys or from published weights."""

    network: dict[str, Any] | None = Field(
        None, description="keys of its configuration, model_type and num_labels among them"
    )
    pretrained: str | None = Field(None, description="folder or hub id of its weights (safetensors)")

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.network is None) == (self.pretrained is None):
            raise ValueError("give either network or pretrained")
        return self


def needed(package: str, key: str) -> Any:
    """The package of a toolbox.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ConfigError(
            f"{key}: {package} cannot be imported ({error}); docs/bridges.md says how to install it"
        ) from None


def read_settings(settings: ToolboxConfig, key: str) -> dict[str, Any]:
    """Keys of the network of an OpenMMLab configuration.

    Raises:
        ConfigError: the file cannot be read (``read_config``), or has no model.
    """
    if settings.network is not None:
        return settings.network
    path = Path(settings.config or "")
    config = read_config(path, trust=settings.trust, cure="set trust: true", source=f"{key}.config: ")
    if not isinstance(config.get("model"), dict):
        raise ConfigError(f"{key}.config: {path} has no model")
    return _named(plain(config["model"]))


def build_openmmlab(package: str, settings: dict[str, Any], key: str) -> Any:
    """A network of MMDetection or MMPose from its keys, without a download.

    Raises:
        ConfigError: a key is wrong.
    """
    needed(f"{package}.utils", key).register_all_modules(init_default_scope=False)
    models, config = needed(f"{package}.registry", key).MODELS, needed("mmengine.config", key).Config
    logger = needed("mmengine.logging", key).MMLogger.get_current_instance()
    own = _harmless(settings, key) | {"_scope_": package}
    for part in (own, own.get("backbone") or {}):
        part.pop("init_cfg", None)
    level = logger.level
    logger.setLevel("WARNING")  # it has a line for every parameter
    try:
        net = models.build(config({"model": own}).model)
        # Until then some of its parameters are whatever memory held.
        net.init_weights()
        return net
    except (KeyError, TypeError, ValueError, AssertionError, AttributeError, RuntimeError) as error:
        said = " ".join(str(error).split())
        raise ConfigError(f"{key}.network: {type(error).__name__}: {said[:300]}") from None
    finally:
        logger.setLevel(level)


def _named(settings: Any) -> Any:
    """Settings in which a class that is told by where it lies is told by its name, as registries know it."""
    if isinstance(settings, list):
        return [_named(item) for item in settings]
    if not isinstance(settings, dict):
        return settings
    made = {key: _named(item) for key, item in settings.items()}
    path, _, name = str(made.get("type")).rpartition(".")
    package = path.partition(".")[0]
    if package in (*_SCOPES, *_SCOPELESS):
        made["type"] = name if package in _SCOPELESS else f"{package}.{name}"
    return made


def _harmless(settings: Any, key: str) -> Any:
    """A copy of settings in which nothing names code; weights that they name are left out.

    A name that no registry holds is imported by mmengine and called, whatever it is, and that of a suppression is
    evaluated by mmcv: with a checkpoint's keys, anybody's code would run.

    Raises:
        ConfigError: a type is no plain name or of a package that is missing, or a key has files read or words run.
    """
    if isinstance(settings, list | tuple):
        return type(settings)(_harmless(item, key) for item in settings if not _weights(item))
    if not isinstance(settings, dict):
        return settings
    for name in _RUNNING & settings.keys():
        raise ConfigError(f"{key}.network: {name}: reads files or runs words, and is not served")
    kind = settings.get("type")
    if isinstance(kind, str) and not _registered(kind, key):
        raise ConfigError(f"{key}.network: type: {kind!r} is no name of a class as a registry holds it")
    return {
        name: _harmless(item, key)
        for name, item in settings.items()
        if not (name == "pretrained" or (name == "init_cfg" and _weights(item)))
    }


def _registered(name: str, key: str) -> bool:
    """Whether it can be the name of something registered, and of nothing else that can be imported.

    Raises:
        ConfigError: the package that it names is not installed.
    """
    scope, _, own = name.rpartition(".")
    if not own.isidentifier() or (scope and scope not in _SCOPES):
        return False
    return not hasattr(needed(scope, key), own) if scope else importlib.util.find_spec(own) is None


def _weights(settings: Any) -> bool:
    return isinstance(settings, dict) and settings.get("type") == "Pretrained"


def load_checkpoint(net: nn.Module, name: str, key: str, without: tuple[str, ...] = ()) -> None:
    """Fill a network strictly, from a safetensors file; weights whose names start so as ``without`` has it are
    left out.

    Raises:
        CheckpointError: the file is not there, is of another kind, broken, or does not fit.
    """
    path = Path(name)
    if not path.is_file():
        raise CheckpointError(f"{key}.checkpoint: {path}: no such file")
    if path.suffix != ".safetensors":
        raise CheckpointError(
            f"{key}.checkpoint: {path}: may hold code, and is not read; save its state_dict as .safetensors "
            "(docs/bridges.md)"
        )
    try:
        held, own = OrderedDict(load_file(path)), net.state_dict()
        for name in [name for name in held if name.startswith(without)]:
            del held[name]
        if held.keys() == own.keys():
            # Layers rename what an older version of theirs wrote, and safetensors does not say which version wrote.
            held._metadata = own._metadata  # type: ignore[attr-defined]
        net.load_state_dict(held)
    except (SafetensorError, RuntimeError, AttributeError) as error:
        raise CheckpointError(f"{key}.checkpoint: {path}: {' '.join(str(error).split())[:300]}") from None


def plain(value: Any) -> Any:
    """Settings in JSON's types."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise ConfigError(f"network: {value!r} is no plain value; write it as one")


def counted(settings: Any, names: dict[str, int]) -> Any:
    """Settings in which every one of some keys has another value."""
    if isinstance(settings, dict):
        return {key: names[key] if key in names else counted(item, names) for key, item in settings.items()}
    return [counted(item, names) for item in settings] if isinstance(settings, list) else settings


def first(settings: Any, name: str) -> Any:
    """The first value of a key, wherever in the settings; None where there is none."""
    if isinstance(settings, dict):
        if name in settings:
            return settings[name]
        settings = list(settings.values())
    if isinstance(settings, list):
        return next((found for found in (first(item, name) for item in settings) if found is not None), None)
    return None
