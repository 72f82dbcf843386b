"""Parts of a model out of other checkpoints, and which decoder serves a task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from visionllm import VisionLLM
from visionllm.core.errors import CheckpointError, ConfigError
from visionllm.runs import ModelConfig, build_model
from visionllm.testing.small import tiny_rt_detr, tiny_settings


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model like the small one, of other weights, and where it lies."""
    torch.manual_seed(7)
    made = build_model(ModelConfig(**tiny_settings()))
    folder = tmp_path_factory.mktemp("other")
    made.save_pretrained(folder)
    return made, folder


def test_a_part_is_taken_and_the_rest_is_not(other: Any) -> None:
    theirs, folder = other
    torch.manual_seed(3)
    plain = build_model(ModelConfig(**tiny_settings())).state_dict()
    torch.manual_seed(3)
    mixed = build_model(ModelConfig(**tiny_settings(), parts={"decoders.objects": str(folder)})).state_dict()
    for name, value in mixed.items():
        source = theirs.state_dict() if name.startswith("decoders.objects") else plain
        assert torch.equal(value, source[name]), name


def test_a_loaded_model_takes_parts_too(other: Any, tmp_path: Path) -> None:
    theirs, folder = other
    torch.manual_seed(3)
    build_model(ModelConfig(**tiny_settings())).save_pretrained(tmp_path)
    plain = VisionLLM.from_pretrained(tmp_path).state_dict()
    mixed = VisionLLM.from_pretrained(tmp_path, parts={"link_queries": str(folder)}).state_dict()
    for name, value in mixed.items():
        source = theirs.state_dict() if name.startswith("link_queries") else plain
        assert torch.equal(value, source[name]), name
    assert not torch.equal(plain["link_queries.tables.[DET]"], mixed["link_queries.tables.[DET]"])


def test_one_nested_key_of_a_decoder_changes_and_the_others_stay(other: Any) -> None:
    theirs, folder = other
    before = theirs.config.decoders["objects"]["network"]
    given = {"objects": {"network": {"num_queries": before["num_queries"], "dropout": 0.25}}}
    network = VisionLLM.from_pretrained(folder, decoders=given).config.decoders["objects"]["network"]
    assert network == before | {"dropout": 0.25}
    assert before.get("dropout") != 0.25


def test_what_is_not_there_is_named(other: Any, tmp_path: Path) -> None:
    _, folder = other
    with pytest.raises(ConfigError, match="parts: no parameter starts with 'nothing'"):
        build_model(ModelConfig(**tiny_settings(), parts={"nothing": str(folder)}))
    with pytest.raises(CheckpointError, match="no such folder"):
        build_model(ModelConfig(**tiny_settings(), parts={"decoders": str(tmp_path / "none")}))
    with pytest.raises(CheckpointError, match=r"parts\.decoders\.objects: missing .*mask_head"):
        build_model(ModelConfig(**tiny_settings(mask_width=16), parts={"decoders.objects": str(folder)}))


def test_one_decoder_serves_a_task() -> None:
    settings = tiny_settings()
    both = settings["decoders"] | {"transformers": {"network": tiny_rt_detr(), "longest": 96}}
    with pytest.raises(ConfigError, match="objects and transformers both serve detection"):
        build_model(ModelConfig(**settings | {"decoders": both}))


def test_another_decoder_serves_a_task_of_ours(picture: Any) -> None:
    settings = tiny_settings() | {"decoders": {"transformers": {"network": tiny_rt_detr(), "longest": 96}}}
    torch.manual_seed(0)
    model = build_model(ModelConfig(**settings)).eval()
    answer = model.detect(picture(80, 60), ["car", "dog"], options={"transformers": {"threshold": 0.0}})
    assert {link.decoder for link in answer.links} == {"transformers"}
    assert answer.detections.phrases == ("car", "dog")
    assert len(answer.detections)
    with pytest.raises(AttributeError, match="segment"):
        model.segment(picture(80, 60), ["car"])
