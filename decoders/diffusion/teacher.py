"""What mapped links learn to say beside what a UNet makes of them: what a published pipeline's own text encoder says of
a phrase, or what a picture has to show.

L = phrases, O = states of a phrase, C = their width.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from visionllm.core.errors import ConfigError
from visionllm.core.sample import Shows


def names(shows: Shows, most: int) -> list[tuple[int, str]]:
    """(state, name) of what the first states of a phrase have to say: 0 and 1 the first thing and its colour, 2 and 3
    the second, ..., and the one behind the last of ``most`` things how the first two lie to each other."""
    said = []
    for i, (category, colour) in enumerate(shows.things[:most]):
        said += [(2 * i, category)] + ([] if colour is None else [(2 * i + 1, colour)])
    return said + [(2 * most, relation) for one, relation, other in shows.relations if (one, other) == (0, 1)][:1]


def told(shows: Sequence[Shows], states_LOC: Tensor, most: int) -> Tensor:
    """Sum over all names of ``names`` of the cross entropy of telling each from all others of these phrases.

    A UNet's loss is mostly noise: it says that a picture is wrong, and hardly that "red" belongs to the car. Here no
    noise is in between. A name is a fixed vector that hangs on its letters alone, so there is nothing to keep for later
    and no list of names to agree on.
    """
    wanted = [(row, state, name) for row, one in enumerate(shows) for state, name in names(one, most)]
    if not wanted:
        return states_LOC.sum() * 0
    known = sorted({name for _, _, name in wanted})
    width = states_LOC.shape[-1]
    vectors_NC = torch.stack([
        torch.randn(width, generator=torch.Generator().manual_seed(zlib.crc32(name.encode()))) for name in known
    ]).to(states_LOC.device)  # fmt: skip
    rows, places, _ = zip(*wanted, strict=True)
    said = states_LOC[list(rows), list(places)].float()
    right = torch.tensor([known.index(name) for _, _, name in wanted], device=said.device)
    return nn.functional.cross_entropy(said @ vectors_NC.T / width**0.5, right, reduction="sum")


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
