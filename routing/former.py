"""What the links of a trained model were, while its language model learns something else."""

from __future__ import annotations

from collections.abc import Collection
from copy import deepcopy

import torch
from torch import Tensor

from visionllm.core.batch import LinkLayout
from visionllm.core.superlink import SuperLinks
from visionllm.routing.queries import LinkQueries
from visionllm.routing.readout import LanguageModel, Text, read_out, run_text


class Former:
    """A language model and its link queries as they were, which reads the same text beside those that learn.

    Decoders that stand still know links as they were. Held near those, links stay readable while new words, tasks and
    tokens are learned, without the decoders' own data and losses (learning without forgetting: Li and Hoiem 2017,
    arXiv 1606.09282, section 3, there for the scores of old classes).

    Args:
        tasks: names of the tasks whose links are held.
    """

    def __init__(self, mllm: LanguageModel, queries: LinkQueries, tasks: Collection[str]) -> None:
        self.mllm, self.queries, self.tasks = mllm.reader(), deepcopy(queries), frozenset(tasks)
        self.queries.requires_grad_(False)

    def places(self, links: LinkLayout) -> list[int]:
        """Indices of the links that are held."""
        return [place for place, meta in enumerate(links.meta) if meta.task in self.tasks]

    def moved(self, links: SuperLinks, layout: LinkLayout, text: Text, seen: Tensor | None) -> Tensor:
        """How far the held links are from what they were: squared, in squared lengths of what they were, and summed
        over their queries.

        Args:
            links: those that learn, of ``layout``.
            seen: what the language model reads at the positions of pictures and regions; it is not looked at anew.
        """
        places = self.places(layout)
        if not places:
            return links.states.new_zeros(())
        with torch.no_grad():
            out = run_text(self.mllm, text, None if seen is None else seen.detach())
            before = read_out(self.mllm, self.queries, text, layout.select(places), out.cache).states.float()
        apart = (links.select(places).states.float() - before).square().sum(-1)
        return (apart / before.square().sum(-1)).sum()
