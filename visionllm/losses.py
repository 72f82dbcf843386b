"""Losses of the language model: of its replies, of what it sees, and of what its links spell.

B = rows, T = tokens, S = positions of pictures and regions, D = width, V = words.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from visionllm.core.batch import Batch, Sights
from visionllm.core.superlink import SuperLinks
from visionllm.mllm.internvl import InternVL
from visionllm.routing.queries import spelling
from visionllm.routing.vocabulary import END, Vocabulary

# Scores of words for what a position shows: cosines times this.
_SHARPNESS = 30.0


def reply_losses(mllm: InternVL, vocabulary: Vocabulary, hidden_BTD: Tensor, batch: Batch) -> dict[str, Tensor]:
    """Cross entropy of every supervised token, from the position before it, and again of where a reply leads.

    Which routing token a question asks for, and where a list ends, are a few tokens among hundreds: averaged over
    tokens they are the last thing a small model learns. So every routing token, the choice behind it, every end and
    the first token of every reply, which says whether it routes at all, count once more, a reply at a time. Both
    sides of the end: with the ends alone a model that is unsure would stop early.

    Replies in free words stand apart (``words``) and count alike, long or short: "red" is one token beside lists
    of names, and a caption, of which nobody can know every token, is forty. One whose phrases bring boxes is no
    different: a fortieth of a mixture was four fifths of the other losses.

    The weakest token of every reply that routes counts once more: such a reply is right when its worst token is,
    and the mean over tokens that are certain, most of them, hides it (max loss: Shalev-Shwartz and Wexler, 2016,
    "Minimizing the Maximal Loss", here over the tokens of a reply).
    """
    wanted = batch.labels[:, 1:] != -100
    labels = batch.labels[:, 1:][wanted]
    # Only these positions meet the head.
    logits = mllm.logits(hidden_BTD[:, :-1][wanted]).float()
    loss = nn.functional.cross_entropy(logits, labels, reduction="none")
    routing = torch.tensor(sorted(vocabulary.routing), device=labels.device)
    end = vocabulary.control(END)
    whole = ended(batch.labels, vocabulary)[:, 1:][wanted]
    choice = torch.isin(batch.input_ids[:, :-1][wanted], routing) | torch.isin(labels, routing) | (labels == end)
    choice |= _first(wanted)[wanted]
    choice &= whole
    said_BT = batch.free[:, 1:]
    said = said_BT[wanted]
    routes = whole & ~said
    number = numbered(wanted)[routes].unique(return_inverse=True)[1]
    weakest = loss.new_zeros(int(number.max()) + 1 if len(number) else 0)
    weakest = weakest.scatter_reduce(0, number, loss[routes], "amax")
    _, reply, length = numbered(said_BT).unique(return_inverse=True, return_counts=True)
    return {"lm": loss[~said].sum(), "end": loss[choice].sum(), "weakest": weakest.sum(),
            "words": (loss[said] / length[reply]).sum()}  # fmt: skip


def ended(labels: Tensor, vocabulary: Vocabulary) -> Tensor:
    """(B, T) the rows whose replies have an end; those in branches have none, and no reply of theirs is counted."""
    return (labels == vocabulary.control(END)).any(1, keepdim=True).expand_as(labels)


def sight_loss(mllm: InternVL, seen_SD: Tensor, sights: Sights) -> Tensor:
    """(S,) of what is seen: cross entropy of naming what each position of a picture, or each region, shows, from
    its angle to the embedding of each word, before the language model's first layer; and its distance from the mean
    embedding of what it shows, squared, in lengths of a word.

    Replies say little about a picture, and a vision tower that begins with nothing learns next to nothing from
    them; this tells it what is where. The distance, because a picture is to read like the words for what is in it:
    a softmax does not see what all positions have in common. By the head's scores alone they grew seventy times as
    long as words and lay in one direction (cosine 0.96 to their mean), by angles alone as well (0.91).
    """
    known, row = sights.slot.unique(return_inverse=True)
    with torch.autocast(seen_SD.device.type, enabled=False):
        words_VD, own_KD = mllm.words().float(), seen_SD[known].float()
        near_KV = nn.functional.normalize(own_KD, dim=-1) @ nn.functional.normalize(words_VD, dim=-1).T
        named = (_SHARPNESS * near_KV).log_softmax(-1)[row, sights.token]
        meant_KD = torch.zeros_like(own_KD).index_add(0, row, sights.weight[:, None] * words_VD.detach()[sights.token])
        weight_K = own_KD.new_zeros(len(known)).index_add(0, row, sights.weight)
        away_K = (own_KD - meant_KD).square().sum(-1) / words_VD.detach().square().sum(-1).mean()
        lost_K = (weight_K * away_K).index_add(0, row, -sights.weight * named)
        return lost_K.new_zeros(len(seen_SD)).index_add(0, known, lost_K)


def spelling_loss(mllm: InternVL, vocabulary: Vocabulary, links: SuperLinks, batch: Batch) -> Tensor:
    """Cross entropy of naming each link's phrase from its queries, through the language model's own head."""
    labels = spelling(batch.links, vocabulary).to(batch.device)
    wanted = labels != -100
    logits = mllm.logits(links.states[wanted]).float()
    return nn.functional.cross_entropy(logits, labels[wanted], reduction="sum")


def _first(wanted: Tensor) -> Tensor:
    """(B, T) whether a run of wanted tokens begins."""
    before = torch.cat([torch.zeros_like(wanted[:, :1]), wanted[:, :-1]], 1)
    return wanted & ~before


def _replies(wanted: Tensor) -> Tensor:
    """(B, T) how many runs of wanted tokens of its row have begun at each place."""
    return _first(wanted).cumsum(1)


def numbered(wanted: Tensor) -> Tensor:
    """(N,) a number for each wanted token, in order: that of its reply among the replies of all rows."""
    reply = _replies(wanted)
    return (reply + reply.shape[1] * torch.arange(len(reply), device=reply.device)[:, None])[wanted]
