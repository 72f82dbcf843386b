"""A model on disk: ``config.json``, ``model*.safetensors``, ``tokenizer.json``. Nothing in it is code.

Migration policy: ``format_version`` counts changes of this layout. A reader loads its own version and every older one
for which ``_MIGRATIONS`` holds a step; a newer version is refused with the advice to upgrade. Weights that are missing
or left over are an error, never a warning.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict, snapshot_download
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from visionllm.config import FORMAT_VERSION
from visionllm.core.errors import CheckpointError, ConfigError

EMBEDDED = Path(__file__).parent / "assets" / "nano"


def _without_places(values: dict[str, Any]) -> dict[str, Any]:
    """1 -> 2: the states of a diffusion decoder begin at places of their own; those of version 1 did not."""
    decoders = values.get("decoders")
    for name in ("generation", "editing"):
        settings = decoders.get(name) if isinstance(decoders, dict) else None
        if isinstance(settings, dict):
            settings.setdefault("places", False)
    return values


def _as_it_is(values: dict[str, Any]) -> dict[str, Any]:
    """2 -> 3: tensors that are alike are stored once; what version 2 stored stands for itself."""
    return values


# version -> function that turns the config values of that version into those of the next.
_MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _without_places, 2: _as_it_is}
_INDEX = "model.safetensors.index.json"
# Tensors of fewer values are stored wherever they stand.
_WORTH_SHARING = 4096
_PATTERNS = ["config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer.json", "README.md"]


def locate(name: str | Path | None) -> Path:
    """The folder of a checkpoint: the embedded one (None), a local folder, or a download from the hub.

    Raises:
        CheckpointError: there is no such folder or hub id.
    """
    if name is None:
        return EMBEDDED
    folder = Path(name)
    if folder.is_dir():
        return folder
    text = str(name)
    if folder.exists() or text.count("/") != 1 or text.startswith((".", "/", "~")):
        raise CheckpointError(f"{name}: no such folder (a hub id has the form owner/name)")
    try:
        return Path(snapshot_download(text, allow_patterns=_PATTERNS))
    except Exception as error:  # noqa: BLE001 (whatever the network did, the cure is the caller's)
        raise CheckpointError(f"{name}: no such folder, and the hub gave none ({type(error).__name__})") from None


def read_config(folder: Path) -> dict[str, Any]:
    """Config values of a checkpoint, migrated to this version.

    Raises:
        CheckpointError: missing, broken, or of a version that cannot be read.
    """
    path = folder / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing; {folder} is not a checkpoint") from None
    except (ValueError, OSError):
        raise CheckpointError(f"{path}: not valid JSON") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: not a VisionLLM checkpoint (expected keys and values)")
    found = values.get("format_version")
    if values.get("model_type") != "visionllm" or not isinstance(found, int):
        raise CheckpointError(f"{path}: not a VisionLLM checkpoint (model_type {values.get('model_type')!r})")
    if found > FORMAT_VERSION:
        raise CheckpointError(f"{path}: format_version {found} is newer than {FORMAT_VERSION}: upgrade visionllm")
    while found < FORMAT_VERSION:
        if found not in _MIGRATIONS:
            raise CheckpointError(
                f"{path}: format_version {found} can no longer be read; convert it with an older release"
            )
        values = _MIGRATIONS[found](values)
        found += 1
    return values


def save_weights(model: nn.Module, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write parameters, cast to ``dtype``, and persistent buffers, which keep theirs, as safetensors.

    Tied tensors, and those that are alike (an autoencoder of two decoders), are written once; the header of the file,
    or the index of several, says which names share one. Buffers are statistics and tables: small, and the worse for
    rounding.
    """
    state = model.state_dict()
    if dtype is not None:
        # Casting makes copies: tied tensors must stay one tensor, or both would be written.
        cast: dict[int, Tensor] = {}
        kept = {name for name, _ in model.named_buffers()}
        state = {
            name: value if name in kept else cast.setdefault(value.data_ptr(), value.to(dtype))
            for name, value in state.items()
        }
    save_torch_state_dict(_alike_as_one(state), folder, safe_serialization=True, metadata={})


# (rows that are there, how many more) -> those.
Grow = Callable[[Tensor, int], Tensor]


def as_the_mean(rows: Tensor, more: int) -> Tensor:
    """Each further row is the mean of all."""
    return rows.float().mean(0).to(rows.dtype).expand(more, *rows.shape[1:])


def by_turns(rows: Tensor, more: int) -> Tensor:
    """Further rows are the first ones again, one after another."""
    return rows[torch.arange(more) % len(rows)]


def load_weights(
    model: nn.Module, folder: Path, fresh: Sequence[str] = (), grown: Sequence[tuple[Tensor, Grow]] = ()
) -> None:
    """Fill a freshly built model; every key must be there and nothing may be left.

    Args:
        fresh: prefixes of parameter names that keep their initial values, whatever the files hold under them.
        grown: tables of the model that may have more rows than the files, and what these rows become.

    Raises:
        CheckpointError: no weights, broken files, missing, unexpected, wrongly shaped or non-finite tensors.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"{folder}: holds no .safetensors file")
    own = model.state_dict()
    aliases = defaultdict(list)
    for name, value in own.items():
        aliases[(value.data_ptr(), value.shape) if value.numel() else name].append(name)
    index, kept, may_grow = _index(folder), tuple(fresh), {table.data_ptr(): grow for table, grow in grown}
    missing, unexpected, wrong = {name for name in own if not name.startswith(kept)}, [], []
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                for name, stored in _names(file, index):
                    if name.startswith(kept):
                        continue
                    if name not in own:
                        unexpected.append(name)
                        continue
                    wrong += _copy(own[name], file.get_tensor(stored), name, may_grow.get(own[name].data_ptr()))
                    missing.discard(name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: broken or unreadable ({type(error).__name__})") from None
    for names in aliases.values():
        if not missing.issuperset(names):
            missing.difference_update(names)
    problems = [f"missing {_some(missing)}"] * bool(missing) + [f"unexpected {_some(unexpected)}"] * bool(unexpected)
    problems += [f"wrong {_some(wrong)}"] * bool(wrong)
    if problems:
        hint = " (name what is to start anew in fresh)" if missing else ""
        raise CheckpointError(f"{folder}: weights do not fit the configuration: {'; '.join(problems)}{hint}")


def take_weights(model: nn.Module, parts: Mapping[str, str]) -> None:
    """Let parts of a model be those of other checkpoints, which were trained apart.

    Args:
        parts: prefix of parameter names -> checkpoint folder that holds them under the same names.

    Raises:
        ConfigError: no parameter has the prefix.
        CheckpointError: the folder lacks one of them, or has it in another shape.
    """
    own = model.state_dict()
    for prefix, name in parts.items():
        missing, wrong = {one for one in own if one.startswith(prefix)}, []
        if not missing:
            raise ConfigError(f"parts: no parameter starts with {prefix!r}")
        folder = locate(name)
        index = _index(folder)
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                for one, stored in _names(file, index):
                    if one in missing:
                        wrong += _copy(own[one], file.get_tensor(stored), one)
                        missing.discard(one)
        if missing or wrong:
            raise CheckpointError(f"{name}: parts.{prefix}: missing {_some(missing)}, wrong {_some(wrong)}")


def copy_weights(model: nn.Module, copies: Mapping[str, str]) -> None:
    """Let parts of a model begin as copies of other parts of it.

    Args:
        copies: prefix of parameter names -> the prefix of those they are copied from, which may have more below it.

    Raises:
        ConfigError: no parameter has the prefix, or a parameter has no counterpart of its shape.
    """
    own = model.state_dict()
    for target, source in copies.items():
        names = [name for name in own if name.startswith(target)]
        if not names:
            raise ConfigError(f"copies: no parameter starts with {target!r}")
        for name in names:
            other = own.get(source + name.removeprefix(target))
            if other is None or other.shape != own[name].shape:
                raise ConfigError(f"copies.{target}: {source}{name.removeprefix(target)} is not there in this shape")
            own[name].copy_(other)


def provider_of(module: str) -> dict[str, str]:
    """The installed distribution that provides a module, for the checkpoint's record."""
    names = packages_distributions().get(module.partition(".")[0], [])
    return {"distribution": names[0], "version": version(names[0])} if names else {}


def _alike_as_one(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same names, with one tensor for all that hold the same values."""
    seen: dict[Any, list[Tensor]] = defaultdict(list)
    shared = {}
    for name, value in state.items():
        others: list[Tensor] = []
        if value.numel() >= _WORTH_SHARING:
            # Layers of one shape are many: what begins otherwise is not compared.
            others = seen[value.shape, value.dtype, value.device, tuple(value.reshape(-1)[:8].tolist())]
        twin = next((one for one in others if one.data_ptr() == value.data_ptr() or torch.equal(one, value)), None)
        shared[name] = value if twin is None else twin
        if twin is None:
            others.append(value)
    return shared


def _index(folder: Path) -> dict[str, str]:
    """What the index of several files says of names that share a tensor; empty where one file holds all."""
    path = folder / _INDEX
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")).get("metadata", {}))
    except (ValueError, AttributeError, TypeError, OSError):
        raise CheckpointError(f"{path}: broken; it is no index of weights") from None


def _names(file: Any, index: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Names of tensors, and under which name an open file stores each."""
    held = sorted(file.keys())
    yield from zip(held, held, strict=True)
    told = {**index, **(file.metadata() or {})}
    yield from ((name, stored) for name, stored in told.items() if stored in held and name not in held)


def _copy(target: Tensor, value: Tensor, name: str, grow: Grow | None = None) -> list[str]:
    if grow is not None and len(target) > len(value) > 0:
        value = torch.cat((value, grow(value, len(target) - len(value))))
    if target.shape != value.shape:
        return [f"{name} {tuple(value.shape)} instead of {tuple(target.shape)}"]
    if value.is_floating_point() and not bool(torch.isfinite(value).all()):
        return [f"{name} holds NaN or infinity"]
    with torch.no_grad():
        target.copy_(value)
    return []


def _some(names: Any) -> str:
    names = sorted(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
