"""Which ids steer, and how a user's words are kept from steering.

Control ids (chat marks, picture marks, ``<ref>``, routing tokens) come from the renderer only. Everything a user or a
data set wrote is encoded by a second tokenizer that has no added tokens at all, so that a typed ``[DET]`` is four
harmless pieces of text, whatever its spelling.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from functools import cache, cached_property
from pathlib import Path

from tokenizers import AddedToken, Tokenizer

from visionllm.core.errors import CheckpointError
from visionllm.core.task import Task, Token
from visionllm.routing.capitals import lowered

START, END = "<|im_start|>", "<|im_end|>"
IMAGE_START, IMAGE_END, IMAGE = "<img>", "</img>", "<IMG_CONTEXT>"
REF, REF_END = "<ref>", "</ref>"
CONTROL = (START, END, IMAGE_START, IMAGE_END, IMAGE, REF, REF_END)
FILE = "tokenizer.json"


class Vocabulary:
    """A tokenizer, its control ids, and its plain twin.

    Args:
        tokenizer: a fast tokenizer; missing control and routing tokens are added as special tokens.
        tasks: tasks whose routing tokens the vocabulary must hold.

    ``new`` are the tokens the tokenizer lacked. Where ``lower_capitals`` is set, words in capitals are read in small
    letters.
    """

    def __init__(self, tokenizer: Tokenizer, tasks: Iterable[Task]) -> None:
        self._tasks = tuple(tasks)
        self.lower_capitals = False
        self.tokens: dict[str, tuple[Task, Token]] = {t.text: (task, t) for task in self._tasks for t in task.tokens}
        wanted = [*CONTROL, *self.tokens]
        self.new = tuple(text for text in wanted if tokenizer.token_to_id(text) is None)
        tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in self.new])
        self._full = tokenizer
        self._plain = _without_added_tokens(tokenizer)
        self.added = frozenset(tokenizer.get_added_tokens_decoder())
        self._control = {text: self._single_id(text) for text in wanted}
        self.routing = {self._control[text]: token for text, (_, token) in self.tokens.items()}
        self.end, self.image, self.pad = self._control[END], self._control[IMAGE], self._control[END]

    @classmethod
    def load(cls, folder: Path, tasks: Iterable[Task]) -> Vocabulary:
        path = folder / FILE
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise CheckpointError(f"{path}: missing; the vocabulary is part of every checkpoint") from None
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{path}: cannot be read ({type(error).__name__})") from None
        try:
            tokenizer = Tokenizer.from_str(text)
        except Exception as error:  # noqa: BLE001 (the library raises nothing narrower)
            raise CheckpointError(f"{path}: not a tokenizer ({error})") from None
        return cls(tokenizer, tasks)

    def of(self, tasks: Iterable[Task]) -> Vocabulary:
        """The same tokens for other tasks."""
        return Vocabulary(Tokenizer.from_str(self._full.to_str()), tasks)

    def save(self, folder: Path) -> None:
        (folder / FILE).write_text(self._full.to_str(pretty=False), encoding="utf-8")

    def __len__(self) -> int:
        return self._full.get_vocab_size(with_added_tokens=True)

    def control(self, text: str) -> int:
        """The id of a control token; the renderer's way in."""
        return self._control[text]

    def plain(self, text: str) -> list[int]:
        """Ids of words that may come from anywhere. Never a control id, whatever the words are."""
        # Lone surrogates cannot be encoded; they are shown as the replacement mark, as a terminal would.
        text = text.encode("utf-8", "replace").decode("utf-8")
        ids = self._plain.encode(lowered(text) if self.lower_capitals else text, add_special_tokens=False).ids
        assert self.added.isdisjoint(ids), "plain text produced a control id"
        return ids

    def text(self, ids: Sequence[int], *, control: bool = True) -> str:
        """Ids back to text, control tokens shown or left out."""
        return self._full.decode(list(ids), skip_special_tokens=not control)

    @cached_property
    def spelled(self) -> dict[int, bytes]:
        """What each id that is no control token says."""
        kind = json.dumps(json.loads(self._full.to_str()).get("decoder"))
        read = _read_bytes if "ByteLevel" in kind else _read_marked
        return {token: read(piece) for piece, token in self._full.get_vocab(with_added_tokens=False).items()
                if token not in self.added}  # fmt: skip

    @cached_property
    def by_piece(self) -> dict[bytes, tuple[int, ...]]:
        """The ids that say some bytes."""
        found: dict[bytes, list[int]] = {}
        for token, piece in self.spelled.items():
            found.setdefault(piece, []).append(token)
        return {piece: tuple(tokens) for piece, tokens in found.items()}

    @cached_property
    def leads(self) -> bool:
        """Whether a text that begins with a word is encoded as if a blank stood before it."""
        return self.spelled[self.plain("a")[0]].startswith(b" ")

    def banned(self, allowed: Iterable[Task] | None = None) -> list[int]:
        """Ids generation must not produce: picture marks, chat starts, and routing tokens of tasks not allowed."""
        routes = {t.text for task in (self._tasks if allowed is None else allowed) for t in task.tokens}
        keep = {self._control[text] for text in (END, REF, REF_END, *routes)}
        return sorted(self.added - keep)

    def _single_id(self, text: str) -> int:
        ids = self._full.encode(text, add_special_tokens=False).ids
        assert len(ids) == 1, f"{text} is not one token: {ids}"
        assert ids[0] in self.added, f"{text} is not an added token: {ids}"
        return ids[0]


@cache
def _bytes_of_letters() -> dict[str, int]:
    """What the letters of a byte-level vocabulary stand for (Radford et al. 2019, "Language models are unsupervised
    multitask learners": bytes that print stand for themselves, the others for letters from 256 on)."""
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printed]
    return {chr(byte): byte for byte in printed} | {chr(256 + n): byte for n, byte in enumerate(others)}


def _read_bytes(piece: str) -> bytes:
    letters = _bytes_of_letters()
    return bytes(letters[letter] for letter in piece) if all(letter in letters for letter in piece) else piece.encode()


def _read_marked(piece: str) -> bytes:
    """Of a vocabulary as SentencePiece writes it: a mark for a blank, and bytes as "<0x0A>"."""
    byte = re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", piece)
    return bytes([int(byte[1], 16)]) if byte else piece.replace("\u2581", " ").encode()


def _without_added_tokens(tokenizer: Tokenizer) -> Tokenizer:
    parts = json.loads(tokenizer.to_str())
    parts["added_tokens"] = []
    parts["post_processor"] = None
    return Tokenizer.from_str(json.dumps(parts))
