"""transformers' ``InternVLForConditionalGeneration``, any size, behind the four calls the rest of the house needs.

B = rows, T = positions, D = width of the language model.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import Cache, DynamicCache, InternVLConfig, InternVLForConditionalGeneration

from visionllm.core.errors import ConfigError
from visionllm.core.networks import check_fields
from visionllm.mllm.attention import register as register_matmul
from visionllm.mllm.stem import Stem


@dataclass(kw_only=True, slots=True, frozen=True, eq=False)
class TextOutput:
    """Last hidden states (B, T, D), after the final norm, and the cache that now holds these positions too."""

    hidden_BTD: Tensor
    cache: Cache | None


class InternVL(nn.Module):
    """A vision tower, a projector and a causal language model.

    Args:
        config: keys of an ``InternVLConfig`` (``vision_config``, ``text_config``, ...); ``stem`` of ``vision_config``,
            which transformers does not know, puts a ``Stem`` of these keys before the vision tower.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.net = InternVLForConditionalGeneration(internvl_config(config))
        stem = getattr(self.config.vision_config, "stem", None)
        if stem is not None:
            embeddings = self.net.model.vision_tower.embeddings
            embeddings.patch_embeddings = Stem(stem, patch=self.patch_size, width=self.vision_width)

    @property
    def config(self) -> InternVLConfig:
        return self.net.config

    @property
    def hidden_size(self) -> int:
        return int(self.config.text_config.hidden_size)

    @property
    def depth(self) -> int:
        """Layers of the language model."""
        return int(self.config.text_config.num_hidden_layers)

    @property
    def context_length(self) -> int:
        return int(self.config.text_config.max_position_embeddings)

    @property
    def tile_size(self) -> int:
        size = self.config.vision_config.image_size
        return int(size[0] if isinstance(size, (list, tuple)) else size)

    @property
    def patch_size(self) -> int:
        size = self.config.vision_config.patch_size
        return int(size[0] if isinstance(size, (list, tuple)) else size)

    @property
    def tokens_per_tile(self) -> int:
        return int((self.tile_size // self.patch_size * self.config.downsample_ratio) ** 2)

    @property
    def vocabulary_size(self) -> int:
        """Number of ids with an embedding and a score, those of a padded vocabulary that have no text included."""
        return int(self.net.get_input_embeddings().weight.shape[0])

    def resize_vocabulary(self, size: int) -> None:
        """Make room for ``size`` ids; spare rows of a padded vocabulary are used before any is added."""
        if size > self.vocabulary_size:
            self.net.resize_token_embeddings(size)

    def vocabulary_tables(self) -> list[Tensor]:
        """The embedding and the head, which hold a row an id; one tensor where they are tied."""
        tables = {t.data_ptr(): t for t in (self.net.get_input_embeddings().weight, self.net.lm_head.weight)}
        return list(tables.values())

    def words(self) -> Tensor:
        """(V, D) embeddings of all ids."""
        weight: Tensor = self.net.get_input_embeddings().weight
        return weight

    @torch.no_grad()
    def pass_through(self, text: int, vision: int) -> None:
        """Make the layers of the language model from ``text`` on, and of the vision tower from ``vision`` on, add
        nothing; they learn to from there."""
        inner = self.net.model
        last = [part for layer in inner.language_model.layers[text:]
                for part in (layer.self_attn.o_proj, layer.mlp.down_proj)]  # fmt: skip
        last += [part for layer in inner.vision_tower.encoder.layer[vision:]
                 for part in (layer.attention.projection_layer, layer.mlp.fc2)]  # fmt: skip
        for linear in last:
            for parameter in linear.parameters():
                parameter.zero_()

    def attend(self, kind: str) -> None:
        """Choose how attention is computed: ``sdpa`` (torch), ``eager`` (transformers) or ``matmul`` (ours)."""
        register_matmul()
        # Of the two parts that attend; a stem may be of a kind that knows no such choice.
        self.net.set_attn_implementation({"": "eager", "text_config": kind, "vision_config": kind})

    def reader(self) -> InternVL:
        """A frozen copy that reads text. What sees pictures is not copied: the two share it, and it learns on."""
        seeing = (self.net.model.vision_tower, self.net.model.multi_modal_projector)
        shared = {id(parameter) for part in seeing for parameter in part.parameters()}
        copy = deepcopy(self, {id(part): part for part in seeing})
        for parameter in copy.parameters():
            if id(parameter) not in shared:
                parameter.requires_grad_(False)
        return copy

    def vision(self, tiles: Tensor) -> Tensor:
        """Projected features (tiles, tokens per tile, D)."""
        return self.net.model.get_image_features(pixel_values=tiles, return_dict=True).pooler_output

    def vision_layers(self, tiles: Tensor, layers: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        """As ``vision``, and the hidden states (tiles, patches, width) of some layers of the vision tower."""
        out = self.net.model.get_image_features(pixel_values=tiles, return_dict=True, output_hidden_states=True)
        # The first position is no patch.
        return out.pooler_output, [out.hidden_states[layer][:, 1:] for layer in layers]

    @property
    def vision_width(self) -> int:
        return int(self.config.vision_config.hidden_size)

    def embed(self, input_ids: Tensor, vision: Tensor | None) -> Tensor:
        """(B, T, D) input embeddings, with what is seen (..., D) in the picture positions, in reading order.

        Raises:
            ValueError: the ids hold another number of picture positions than there are features.
        """
        embeds = self.net.get_input_embeddings()(input_ids)
        place = input_ids == self.config.image_token_id
        count = 0 if vision is None else vision.shape[:-1].numel()
        if int(place.sum()) != count:
            raise ValueError(f"the text holds {int(place.sum())} picture positions, the tiles give {count}")
        if vision is None:
            return embeds
        return embeds.masked_scatter(place[..., None], vision.to(embeds.dtype))

    def text(self, embeds_BTD: Tensor, mask: Tensor | None, position_ids: Tensor, cache: Cache | None = None,
             keep_cache: bool = True) -> TextOutput:  # fmt: skip
        """Run the language model.

        Args:
            mask: (B, K) of 0 and 1, or additive float (B, 1, T, K), over cached and new positions; never a boolean 4-D
                mask, which eager attention silently adds as 0 and 1.
            cache: positions already run; extended in place.
        """
        assert mask is None or mask.dim() == 2 or mask.is_floating_point()
        if cache is None and keep_cache:
            cache = DynamicCache(config=self.config.text_config)
        out = self.net.model.language_model(
            inputs_embeds=embeds_BTD,
            attention_mask=mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        return TextOutput(hidden_BTD=out.last_hidden_state, cache=cache)

    def rows(self, cache: Cache, rows: Tensor) -> Cache:
        """A cache of some rows of another."""
        own = DynamicCache(config=self.config.text_config)
        for place, layer in enumerate(cache.layers):
            own.update(layer.keys[rows], layer.values[rows], place)
        return own

    def joined(self, parts: Sequence[tuple[Tensor, Cache]], count: int) -> Cache:
        """One cache of ``count`` rows out of those of some rows each, as long as the longest; shorter ones end in
        zeros, which only padding may lie on."""
        longest = max((cache for _, cache in parts), key=lambda cache: cache.get_seq_length())
        whole = DynamicCache(config=self.config.text_config)
        for place, layer in enumerate(longest.layers):
            filled = []
            for name in ("keys", "values"):
                like = getattr(layer, name)
                both = like.new_zeros(count, *like.shape[1:])
                for rows, cache in parts:
                    own = getattr(cache.layers[place], name)
                    both[rows, :, : own.shape[2]] = own
                filled.append(both)
            whole.update(*filled, place)
        return whole

    def logits(self, hidden: Tensor) -> Tensor:
        return self.net.lm_head(hidden)

    def no_split_modules(self) -> list[str]:
        return sorted(set(self.net._no_split_modules or []))


def internvl_config(values: dict[str, Any]) -> InternVLConfig:
    """An ``InternVLConfig`` from plain keys.

    Raises:
        ConfigError: the keys do not make a configuration, or one of them is not a field of it.
    """
    try:
        config = InternVLConfig(**values)
    except (TypeError, ValueError, KeyError, StrictDataclassError) as error:
        raise ConfigError(f"mllm: not an InternVL configuration ({' '.join(str(error).split())})") from None
    # transformers takes any key, and what is misspelt would change nothing, unseen.
    check_fields("mllm", InternVLConfig(), values)
    for part, ours in (("vision_config", {"stem"}), ("text_config", {"rope_theta"})):  # the latter of older files
        keys = values.get(part)
        if isinstance(keys, dict):
            check_fields(f"mllm.{part}", type(getattr(config, part))(), keys.keys() - ours)
    return config
