"""What a published pipeline's own text encoder says of a phrase, for links to learn to say the same.

L = phrases, O = states of a phrase, C = their width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from visionllm.core.errors import ConfigError


class TextTeacher:
    """The text encoder and tokenizer of a pipeline; they stand still.

    Args:
        name: folder or hub id in the layout of a Stable Diffusion pipeline.
        outputs, width: O and C that the mapped links have.

    Raises:
        ConfigError: it is not there, or its states are of another number or width.
    """

    def __init__(self, name: str, outputs: int, width: int) -> None:
        from transformers import CLIPTextModel, CLIPTokenizer

        try:
            self._tokenizer = CLIPTokenizer.from_pretrained(name, subfolder="tokenizer")
            self._encoder = CLIPTextModel.from_pretrained(name, subfolder="text_encoder", use_safetensors=True).eval()
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(f"align: {name}: cannot be loaded ({str(error).splitlines()[0]})") from None
        config = self._encoder.config
        found = (int(config.max_position_embeddings), int(config.hidden_size))
        if found != (outputs, width):
            raise ConfigError(
                f"align: {name}: its text encoder gives {found[0]} states of width {found[1]}, the mapped links are "
                f"{outputs} of width {width}; set outputs, or align with the pipeline of the UNet"
            )
        self._length = outputs

    @torch.no_grad()
    def __call__(self, phrases: Sequence[str]) -> Tensor:
        """(L, O, C)."""
        text = self._tokenizer(
            list(phrases), padding="max_length", max_length=self._length, truncation=True, return_tensors="pt"
        )
        return self._encoder(text.input_ids)[0]
