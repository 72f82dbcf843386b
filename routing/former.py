"""What the links of a trained model were, while its language model learns something else."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from visionllm.core.batch import Batch
from visionllm.core.superlink import SuperLinks
from visionllm.routing.queries import LinkQueries
from visionllm.routing.readout import LanguageModel, Text, read_out, run_text


class Look(NamedTuple):
    """A batch, and what the language model reads at its positions of pictures and regions."""

    batch: Batch
    states: Tensor | None


class Former:
    """A language model and its link queries as they were, which reads the same text beside those that learn.

    Decoders that stand still know links as they were. Held near those, links stay readable while new words, tasks and
    tokens are learned, without the decoders' own data and losses (learning without forgetting: Li and Hoiem 2017,
    arXiv 1606.09282, section 3, there for the scores of old classes).

    A phrase that means another (``Turn.means``) is held near the link of that one, where the former model is asked for
    it in plain words: so decoders find what "same as region 1 in picture 2" is without ever having read it.

    Args:
        tasks: names of the tasks whose links are held.
    """

    def __init__(self, mllm: LanguageModel, queries: LinkQueries, tasks: Collection[str]) -> None:
        self.mllm, self.queries, self.tasks = mllm.reader(), deepcopy(queries), frozenset(tasks)
        self.queries.requires_grad_(False)

    def places(self, batch: Batch) -> tuple[list[int], list[int]]:
        """Indices of the links of a batch that are held to their own phrases, and to what these mean in plain words."""
        again = set() if batch.plain is None else {i for i, one in enumerate(batch.samples) if one.plain() is not None}
        own = [place for place, meta in enumerate(batch.links.meta) if meta.task in self.tasks]
        return ([place for place in own if batch.links.meta[place].sample not in again],
                [place for place in own if batch.links.meta[place].sample in again])  # fmt: skip

    def moved(self, links: SuperLinks, seen: Look, plain: Look | None = None) -> dict[str, Tensor]:
        """How far the held links are from what they were, and from what they mean (``held``, ``meant``): squared, in
        squared lengths of where they should be, and summed over their queries.

        Args:
            links: those that learn, of the batch that was seen; its pictures are not looked at anew.
            plain: ``Batch.plain`` of this batch, as it is seen.
        """
        own, meant = self.places(seen.batch)
        found = {"held": self._apart(links.select(own), seen, own)}
        if plain is not None:
            found["meant"] = self._apart(links.select(meant), plain, self.places(plain.batch)[0])
        return found

    def _apart(self, links: SuperLinks, seen: Look, places: Sequence[int]) -> Tensor:
        """Links against those that the former model has at these places."""
        if not places:
            return links.states.new_zeros(())
        before = self._read(seen, places)
        assert links.queries == before.queries, "a phrase and its meaning differ"
        apart = (links.states.float() - before.states).square().sum(-1)
        return (apart / before.states.square().sum(-1)).sum()

    @torch.no_grad()
    def _read(self, seen: Look, places: Sequence[int]) -> SuperLinks:
        text = Text.of(seen.batch)
        out = run_text(self.mllm, text, None if seen.states is None else seen.states.detach())
        links = read_out(self.mllm, self.queries, text, seen.batch.links.select(places), out.cache)
        return replace(links, states=links.states.float())
