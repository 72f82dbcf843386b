"""transformers' networks from plain keys."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig

from visionllm.core.errors import ConfigError


def known_config(path: str, values: Any) -> Any:
    """A transformers configuration whose every key is one of its fields; transformers itself takes any key.

    Args:
        path: of the values, for error texts ("objects.network").
        values: keys, with ``model_type``.

    Raises:
        ConfigError: there is no such kind of model, or a key is not one of its fields or has a wrong value.
    """
    keys = dict(values) if isinstance(values, dict) else {}
    kind = keys.pop("model_type", None)
    if kind not in CONFIG_MAPPING:
        raise ConfigError(f"{path}.model_type: no such kind of model: {kind!r}")
    check_fields(path, AutoConfig.for_model(kind), keys)
    try:
        return AutoConfig.for_model(kind, **keys)
    except (TypeError, ValueError, StrictDataclassError) as error:
        raise ConfigError(f"{path}: {' '.join(str(error).split())}") from None


def check_fields(path: str, known: PretrainedConfig, keys: Iterable[str]) -> None:
    """Refuse keys that are no fields of a configuration.

    Raises:
        ConfigError: it names the key, and a field that is written like it.
    """
    for key in keys:
        if not hasattr(known, key):
            close = difflib.get_close_matches(key, known.to_dict(), n=1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise ConfigError(f"{path}.{key}: not a field of {type(known).__name__}{hint}")


def use_group_norm(module: nn.Module, groups: int, *, path: str) -> None:
    """Replace every batch norm, frozen or not, by group norm, and let all weights learn.

    Frozen statistics are made for published weights; a network trained from scratch cannot learn under them, and those
    of a batch are poor where batches are small (Wu and He 2018, "Group Normalization").

    Args:
        path: of the number of groups in the configuration, for error texts.

    Raises:
        ConfigError: the groups do not divide the channels of a layer.
    """
    for name, child in module.named_children():
        if hasattr(child, "running_mean"):
            channels = len(child.running_mean)
            if channels % groups:
                raise ConfigError(f"{path}: {groups} groups do not divide the {channels} channels of a layer")
            setattr(module, name, nn.GroupNorm(groups, channels))
        else:
            use_group_norm(child, groups, path=path)
    for parameter in module.parameters():
        parameter.requires_grad_(True)
