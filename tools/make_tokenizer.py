"""Train the nano model's byte-level BPE tokenizer on the project's own wordings and invented names.

    python tools/make_tokenizer.py configs/models/nano/tokenizer.json

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
    for name, count in (("scenes", SAMPLES // 8), ("phrases", SAMPLES)):
        dataset = open_dataset(name, "train")
        for index in range(count):
            rng = np.random.default_rng(index)
            sample: Sample = dataset.ask(index, rng)
            lines += [render_question(turn, rng) for turn in sample.turns]
    return lines


def main(path: str) -> None:
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


if __name__ == "__main__":
    main(sys.argv[1])
