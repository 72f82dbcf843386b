"""Distances by the features of a network: of one that is made here, small and random."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from visionllm.core.answer import Answer, LinkResult
from visionllm.core.errors import ConfigError
from visionllm.core.images import Images, Recipe
from visionllm.core.sample import Picture, PictureTarget, Turn
from visionllm.core.superlink import LinkMeta
from visionllm.metrics import METRICS
from visionllm.metrics.features import frechet


def test_frechet_by_hand_and_against_scipy() -> None:
    linalg = pytest.importorskip("scipy.linalg")
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(50, 8)), rng.normal(1.0, 2.0, size=(40, 8)) @ rng.normal(size=(8, 8))
    cov = [np.cov(values, rowvar=False) for values in (one, other)]
    root = linalg.sqrtm(cov[0] @ cov[1]).real
    apart = one.mean(0) - other.mean(0)
    assert frechet(one, other) == pytest.approx(apart @ apart + np.trace(cov[0] + cov[1] - 2 * root))
    assert frechet(one, one) == pytest.approx(0, abs=1e-9)
    assert frechet(one, one + 3) == pytest.approx(8 * 9)


@pytest.fixture(scope="module")
def dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import Dinov2Config, Dinov2Model, ViTImageProcessor

    folder = tmp_path_factory.mktemp("dino")
    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
    Dinov2Model(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 28, "width": 28}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    words = Tokenizer(WordLevel({"<end>": 0, "a": 1, "car": 2, "dog": 3}, unk_token="<end>"))
    words.pre_tokenizer = Whitespace()
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**small, "vocab_size": 4, "max_position_embeddings": 8, "eos_token_id": 0},
        vision_config={**small, "image_size": 28, "patch_size": 14}, projection_dim=8,
    )  # fmt: skip
    CLIPModel(config).save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<end>", eos_token="<end>")
    CLIPProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder)
    return folder


def noise(seed: int) -> Picture:
    return Picture(pixels=np.random.default_rng(seed).integers(0, 256, (32, 32, 3)).astype(np.uint8))


def answered(metric: str, judge: Path, made: list[Picture], truth: list[Picture], phrase: str = "a car") -> dict:
    found = METRICS[metric]((), judge=str(judge))
    for key, (one, true) in enumerate(zip(made, truth, strict=True)):
        recipe = Recipe(task="generation", phrase=phrase, prompt=None, decoder="generation", options={}, place=0,
                        size=one.size, model=None)  # fmt: skip
        meta = LinkMeta(sample=0, turn=0, task="generation", token="[GEN]", phrase=phrase)
        link = LinkResult(meta=meta, decoder="generation", result=Images(pictures=(one,), recipes=(recipe,)))
        turn = Turn(task="generation", phrases=(phrase,), target=PictureTarget(pictures=(true,)))
        found.add(turn, Answer(text="", links=(link,)), key=key)
    return found.compute()


def test_equal_pictures_are_alike(dino: Path) -> None:
    pictures = [noise(i) for i in range(4)]
    assert answered("similarity", dino, pictures, pictures)["similarity"] == pytest.approx(1, abs=1e-5)
    assert answered("similarity", dino, pictures, pictures[::-1])["similarity"] < 0.999
    assert answered("frechet", dino, pictures, pictures[::-1])["distance"] == pytest.approx(0, abs=1e-6)
    bright = [Picture(pixels=(one.pixels // 2 + 127).astype(np.uint8)) for one in pictures]
    assert answered("frechet", dino, bright, pictures)["distance"] > 1e-3
    assert answered("frechet", dino, pictures[:1], pictures[:1])["distance"] is None


def test_a_network_without_a_pooler_says_what_stands_first(tmp_path: Path) -> None:
    """Published DINO: transformers would put random weights behind it, other ones at each start."""
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    torch.manual_seed(0)
    config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
    own = ViTModel(config, add_pooling_layer=False).eval()
    own.save_pretrained(tmp_path)
    processor = ViTImageProcessor(size={"height": 28, "width": 28})
    processor.save_pretrained(tmp_path)
    one, other = noise(0), noise(1)
    with torch.no_grad():
        first = [own(**processor(images=x.pixels, return_tensors="pt")).last_hidden_state[:, 0] for x in (one, other)]
    wanted = float(torch.cosine_similarity(*first))
    assert answered("similarity", tmp_path, [one], [other])["similarity"] == pytest.approx(wanted, abs=1e-5)
    # What lacks more has no features at all.
    torch.manual_seed(0)
    kept = {name: value for name, value in own.state_dict().items() if "layernorm.weight" not in name}
    own.save_pretrained(tmp_path / "half", state_dict=kept)
    processor.save_pretrained(tmp_path / "half")
    with pytest.raises(ConfigError, match=r"half: its weights lack .*layernorm\.weight; take a whole checkpoint"):
        METRICS["similarity"]((), judge=str(tmp_path / "half"))


def test_clip_score_is_the_model_s_own(clip: Path, dino: Path) -> None:
    from transformers import CLIPModel, CLIPProcessor

    picture = noise(0)
    model, processor = CLIPModel.from_pretrained(clip).eval(), CLIPProcessor.from_pretrained(clip)
    for phrase in ("a car", "dog"):
        with torch.no_grad():
            told = model(**processor(text=[phrase], images=picture.pixels, return_tensors="pt", padding=True))
            wanted = float(told.logits_per_image / model.logit_scale.exp())
        found = answered("clip_score", clip, [picture], [picture], phrase)
        assert found["score"] == pytest.approx(max(100 * wanted, 0), abs=1e-3)
        assert found["pictures"] == 1
    with pytest.raises(ConfigError, match="has no features of words"):
        answered("clip_score", dino, [picture], [picture])


def test_a_network_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match="judges: nowhere/at-all: cannot be loaded"):
        METRICS["frechet"]((), judge="nowhere/at-all")
