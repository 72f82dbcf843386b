"""What a model is made of."""

from __future__ import annotations

from typing import Any

from transformers import InternVLConfig, PretrainedConfig

from visionllm.core.config import validate
from visionllm.core.errors import CheckpointError, ConfigError
from visionllm.decoders import DECODERS
from visionllm.mllm.regions import RegionConfig

FORMAT_VERSION = 3


class VisionLLMConfig(PretrainedConfig):
    """Configuration of a ``VisionLLM``.

    Args:
        mllm: keys of an ``InternVLConfig``.
        decoders: registered decoder name -> its ``Config`` as plain values.
        regions: keys of a ``RegionConfig``; None leaves out regions as input.
        max_tiles: tiles a picture may take, the thumbnail not counted.
        max_new_tokens: default length limit of a reply.
        quote: whether phrases that a reply lists are written from the words of the prompt (``routing.quoting``); false
            for a model whose replies name things by other words than the user's.
        lower_capitals: whether words in capitals are read in small letters (``routing.capitals``); for a model that
            learned its words in small letters.
        format_version: version of the checkpoint layout (see ``checkpoint``).
        providers: decoder name -> ``{"distribution", "version"}`` that provides it.
    """

    model_type = "visionllm"

    mllm: dict[str, Any] | None = None
    decoders: dict[str, Any] | None = None
    regions: dict[str, Any] | None = None
    max_tiles: int = 12
    max_new_tokens: int = 512
    quote: bool = True
    lower_capitals: bool = False
    format_version: int = FORMAT_VERSION
    providers: dict[str, Any] | None = None

    @property
    def hidden_size(self) -> int:
        """Width of the language model; DeepSpeed's "auto" values read it."""
        return int(self.get_text_config().hidden_size)

    def get_text_config(self, *args: Any, **kwargs: Any) -> Any:
        return InternVLConfig(**self.mllm).get_text_config() if self.mllm else self

    def region_config(self) -> RegionConfig | None:
        """Validated configuration of the region encoder, None without one.

        Raises:
            ConfigError: a key is wrong, or the vision tower has no such layer.
        """
        if self.regions is None:
            return None
        found: RegionConfig = validate(RegionConfig, self.regions, source="regions")
        depth = int(InternVLConfig(**(self.mllm or {})).vision_config.num_hidden_layers)
        for layer in found.layers:
            if not -depth - 1 <= layer <= depth:
                raise ConfigError(f"regions.layers: no layer {layer} in a vision tower of {depth}")
        return found

    def decoder_configs(self) -> dict[str, Any]:
        """Validated configuration of every decoder.

        Raises:
            CheckpointError: a decoder is not installed; the message says what to install.
            ConfigError: a key of a decoder's configuration is wrong.
        """
        found = {}
        if not isinstance(self.decoders or {}, dict):
            raise ConfigError(f"decoders: expected names and settings, got {type(self.decoders).__name__}")
        for name, values in (self.decoders or {}).items():
            if name not in DECODERS:
                provider = (self.providers or {}).get(name, {})
                what = "==".join(filter(None, (provider.get("distribution"), provider.get("version"))))
                hint = f"pip install {what}" if what else f"known: {', '.join(DECODERS)}"
                raise CheckpointError(f"decoder {name!r} is not installed ({hint})")
            found[name] = validate(DECODERS[name].Config, values, source=f"decoders.{name}")
        if not isinstance(self.max_tiles, int) or self.max_tiles < 1:
            raise ConfigError(f"max_tiles: expected a positive integer, got {self.max_tiles!r}")
        return found
