"""What the links of a trained model were, while its language model learns something else."""

from __future__ import annotations

from collections.abc import Collection
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

    def places(self, batch: Batch) -> list[int]:
        """Indices of the links of a batch that are held."""
        return [place for place, meta in enumerate(batch.links.meta) if meta.task in self.tasks]

    def moved(self, links: SuperLinks, seen: Look, plain: Look | None = None) -> Tensor:
        """How far the held links are from what they were: squared, in squared lengths of what they were, and summed
        over their queries.

        Args:
            links: those that learn, of the batch that was seen; its pictures are not looked at anew.
            plain: ``Batch.plain`` of this batch, as it is seen.
        """
        places = self.places(seen.batch)
        if not places:
            return links.states.new_zeros(())
        links = links.select(places)
        before = self._read(seen)
        if plain is not None and self.places(plain.batch):
            before = _meaning(before, seen.batch, self._read(plain))
        apart = (links.states.float() - before.states).square().sum(-1)
        return (apart / before.states.square().sum(-1)).sum()

    @torch.no_grad()
    def _read(self, seen: Look) -> SuperLinks:
        text, layout = Text.of(seen.batch), seen.batch.links.select(self.places(seen.batch))
        out = run_text(self.mllm, text, None if seen.states is None else seen.states.detach())
        links = read_out(self.mllm, self.queries, text, layout, out.cache)
        return replace(links, states=links.states.float())


def _meaning(links: SuperLinks, batch: Batch, plain: SuperLinks) -> SuperLinks:
    """Links in which those of samples that were asked for in plain words as well are as they are there."""
    again = {place for place, sample in enumerate(batch.samples) if sample.plain() is not None}
    taken = [place for place, meta in enumerate(links.meta) if meta.sample in again]
    assert [links.queries[place] for place in taken] == list(plain.queries), "a phrase and its meaning differ"
    states = list(links.states.split(links.queries))
    for place, meant in zip(taken, plain.states.split(plain.queries), strict=True):
        states[place] = meant
    return replace(links, states=torch.cat(states))
