"""Train the nano model's byte-level BPE tokenizer on the project's own wordings and invented names.

    python tools/make_tokenizer.py configs/models/nano/tokenizer.json
    python tools/make_tokenizer.py --parts configs/models/nano/tokenizer.json configs/datasets/phrase_parts.txt

The second command lists the tokens that are letters: names to copy are glued from them (datasets/formats/inventing.py).

Words, spaces, digits and marks are tokens apart, so a word is the same tokens in a question ("find a mug") and behind
``<ref>`` ("<ref>mug"): copying it is copying tokens. Whatever it has not seen falls back to bytes.
"""

import sys

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from visionllm import Sample, open_dataset, render_question

SIZE, SAMPLES = 1920, 40_000


def corpus() -> list[str]:
    """Questions about scenes and about invented names, each pure in its index."""
    lines = []
    # Names glued from the tokens of an earlier tokenizer would only make those again.
    for name, split, count in (("scenes", "train", SAMPLES // 8), ("phrases", "words", SAMPLES)):
        dataset = open_dataset(name, split)
        for index in range(count):
            rng = np.random.default_rng(index)
            sample: Sample = dataset.ask(index, rng)
            lines += [render_question(turn, rng=rng) for turn in sample.turns]
    return lines


def make(path: str) -> None:
    """Train the tokenizer and write it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(r"\s|\d|[^\s\w]|_"), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE, min_frequency=5, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.save(path)
    print(f"{path}: {tokenizer.get_vocab_size()} tokens")


def write_parts(tokenizer: str, path: str) -> None:
    """Write the tokens that are whole letters, one a line."""
    known = Tokenizer.from_file(tokenizer)
    texts = {known.decode([index]) for index in known.get_vocab().values()}
    parts = sorted(text for text in texts if text.isalpha())
    with open(path, "w", encoding="utf-8") as file:
        file.write(f"# The tokens of {tokenizer} that are letters, by tools/make_tokenizer.py.\n")
        file.write("\n".join(parts) + "\n")
    print(f"{path}: {len(parts)} parts")


if __name__ == "__main__":
    if sys.argv[1] == "--parts":
        write_parts(*sys.argv[2:])
    else:
        make(sys.argv[1])
