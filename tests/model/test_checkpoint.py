"""A checkpoint gives back what was saved, all of it, or says in one line why not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from visionllm import checkpoint
from visionllm.checkpoint import load_weights, locate, save_weights, take_weights
from visionllm.config import FORMAT_VERSION, VisionLLMConfig
from visionllm.core.errors import CheckpointError, ConfigError, VisionLLMError
from visionllm.model import VisionLLM

Make = Callable[..., Any]
WEIGHTS = "model.safetensors"
PRESENCE = "decoders.objects.presence_weight"


def everything(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, those that are not saved and those under a second name included."""
    return {
        **{f"parameter {n}": v for n, v in model.named_parameters(remove_duplicate=False)},
        **{f"buffer {n}": v for n, v in model.named_buffers(remove_duplicate=False)},
    }


@pytest.fixture(scope="module")
def saved(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that nobody may change."""
    folder = tmp_path_factory.mktemp("saved")
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A checkpoint to break."""
    for path in saved.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in values.items() if v != "gone"}))


def change_weights(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


@pytest.mark.parametrize("kind", ["mm-grounding-dino", "grounding-dino"])
@pytest.mark.parametrize("share", [True, False])
def test_round_trip_is_equal_in_everything(
    make_model: Make, tiny_network: Make, tmp_path: Path, kind: str, share: bool
) -> None:
    changes = {"network": tiny_network(kind, decoder_bbox_embed_share=share)}
    model = make_model(seed=1, kind=kind, **changes)
    # A buffer that is not saved and not a constant of the constructor would come back as something else.
    model.save_pretrained(tmp_path)
    torch.manual_seed(99)
    again = VisionLLM.from_pretrained(tmp_path)
    before, after = everything(model), everything(again)
    assert before.keys() == after.keys()
    assert any("inv_freq" in name for name in before), "buffers that are not saved must be among them"
    wrong = [name for name in before if not torch.equal(before[name], after[name])]
    assert not wrong
    assert not again.training
    assert again.vocabulary.added == model.vocabulary.added
    assert again.fingerprint == model.fingerprint
    assert again.config.decoders == model.config.decoders


def test_the_answers_are_the_same(model: Any, saved: Path, picture: Make) -> None:
    again = VisionLLM.from_pretrained(saved)
    one, other = (m.detect(picture(), ["car"], options={"objects": {"threshold": 0.0}}) for m in (model, again))
    assert (one.detections.boxes_xyxy == other.detections.boxes_xyxy).all()


def test_half_precision_on_disk(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path, dtype=torch.bfloat16)
    again = VisionLLM.from_pretrained(tmp_path)
    for name, value in everything(again).items():
        expected = everything(model)[name]
        if value.is_floating_point() and name.startswith("parameter"):
            expected = expected.bfloat16().float()
        assert torch.equal(value, expected), name


def test_what_is_fresh_is_not_read(model: Any, tmp_path: Path) -> None:
    prefix = "decoders.objects.phrase_head"
    model.save_pretrained(tmp_path)
    file = tmp_path / WEIGHTS
    tensors = load_file(file)
    tensors = {name: value for name, value in tensors.items() if not name.startswith(prefix)}
    save_file({**tensors, f"{prefix}.of.another.shape": torch.zeros(3)}, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="missing"):
        VisionLLM.from_pretrained(tmp_path)
    again = VisionLLM.from_pretrained(tmp_path, fresh=[prefix])
    for name, value in everything(again).items():
        assert prefix in name or torch.equal(value, everything(model)[name]), name
    with pytest.raises(ConfigError, match=r"no parameter starts with 'decoders\.objets'"):
        VisionLLM.from_pretrained(tmp_path, fresh=["decoders.objets"])


WITH_MASKS = {"objects": {"mask_width": 16}}
FRESH_MASKS = ["decoders.objects.mask_head", "decoders.objects.pixel_map", "link_queries.tables.[SEG]"]


def test_a_task_joins_a_trained_model(model: Any, saved: Path, picture: Make, tmp_path: Path) -> None:
    """Its token begins as the one it is like; nothing of what the model could do changes."""
    with pytest.raises(CheckpointError, match=r"mask_head.*\(name what is to start anew in fresh\)"):
        VisionLLM.from_pretrained(saved, decoders=WITH_MASKS)
    grown = VisionLLM.from_pretrained(saved, decoders=WITH_MASKS, fresh=FRESH_MASKS)
    assert [task.name for task in grown.tasks] == ["detection", "segmentation"]
    old, new = (grown.vocabulary.control(text) for text in ("[DET]", "[SEG]"))
    assert new == len(model.vocabulary) == len(grown.vocabulary) - 1
    assert all(torch.equal(table[old], table[new]) for table in grown.mllm.vocabulary_tables())
    assert torch.equal(grown.link_queries.tables["[DET]"], grown.link_queries.tables["[SEG]"])
    before = everything(model)
    tables = {"embed_tokens.weight", "lm_head.weight"}
    for name, value in everything(grown).items():
        if name in before:
            rows = slice(new) if any(name.endswith(table) for table in tables) else ...
            assert torch.equal(value[rows], before[name][rows]), name
    masks = grown.segment(picture(), ["car", "dog"], options={"objects": {"threshold": 0.0}}).masks
    assert len(masks) == len(masks.masks) > 0
    grown.configure("objects", threshold=0.0, thresholds={"segmentation": 1.0})
    assert not len(grown.segment(picture(), ["car"]).masks)
    assert len(grown.detect(picture(), ["car"]).detections)
    grown.save_pretrained(tmp_path)
    again = VisionLLM.from_pretrained(tmp_path)
    assert all(torch.equal(value, everything(grown)[name]) for name, value in everything(again).items())


def test_places_that_join_begin_as_the_first_ones(model: Any, saved: Path, tmp_path: Path) -> None:
    """More learned places than the checkpoint has, where they are asked for; else a table of few rows is broken."""
    name = "decoders.objects.detector.net.query_position_embeddings.weight"
    before = model.state_dict()[name]
    more = 2 * len(before) + 3
    asked = {"objects": {"network": {"num_queries": more}}}
    grown = VisionLLM.from_pretrained(saved, decoders=asked).state_dict()
    assert torch.equal(grown[name], torch.cat((before, before, before[:3])))
    assert all(torch.equal(value, grown[key]) for key, value in model.state_dict().items() if key != name)
    with pytest.raises(CheckpointError, match="query_position_embeddings"):
        VisionLLM.from_pretrained(saved, decoders={"objects": {"network": {"num_queries": len(before) - 1}}})
    values = json.loads((saved / "config.json").read_text(encoding="utf-8"))
    values["decoders"]["objects"]["network"]["num_queries"] = more
    (tmp_path / "config.json").write_text(json.dumps(values), encoding="utf-8")
    for file in (WEIGHTS, "tokenizer.json"):
        shutil.copy(saved / file, tmp_path)
    with pytest.raises(CheckpointError, match="query_position_embeddings"):
        VisionLLM.from_pretrained(tmp_path)


def test_a_language_model_grows_and_knows_what_it_knew(model: Any, saved: Path, boxed: Make, tmp_path: Path) -> None:
    """New layers begin as identity, and learn from there."""
    deeper: dict[str, Any] = {"text_config": {"num_hidden_layers": 4}}
    new = ["mllm.net.model.language_model.layers.2", "mllm.net.model.language_model.layers.3"]
    with pytest.raises(CheckpointError, match=r"layers\.2.*\(name what is to start anew in fresh\)"):
        VisionLLM.from_pretrained(saved, mllm=deeper)
    grown = VisionLLM.from_pretrained(saved, mllm=deeper, fresh=new)
    batch = model.processor.encode([boxed()])
    with torch.no_grad():
        torch.testing.assert_close(grown.links(batch).states, model.links(batch).states, atol=1e-5, rtol=1e-5)
    grown.save_pretrained(tmp_path)
    assert VisionLLM.from_pretrained(tmp_path).fingerprint == grown.fingerprint
    losses = grown.train()(batch)
    losses.sums["lm"].backward()
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        grad = grown.get_parameter(f"{new[1]}.{name}.weight").grad
        assert grad is not None
        assert float(grad.abs().max()) > 0
    with pytest.raises(CheckpointError, match="wrong"):
        VisionLLM.from_pretrained(saved, mllm={"text_config": {"intermediate_size": 64}})


def test_a_vision_tower_grows_and_sees_what_it_saw(model: Any, saved: Path) -> None:
    deeper: dict[str, Any] = {"vision_config": {"num_hidden_layers": 3}}
    new = "mllm.net.model.vision_tower.encoder.layer.2"
    with pytest.raises(CheckpointError, match=r"layer\.2.*\(name what is to start anew in fresh\)"):
        VisionLLM.from_pretrained(saved, mllm=deeper)
    grown = VisionLLM.from_pretrained(saved, mllm=deeper, fresh=[new])
    tiles = torch.rand(1, 3, model.mllm.tile_size, model.mllm.tile_size)
    torch.testing.assert_close(grown.mllm.vision(tiles), model.mllm.vision(tiles))
    grown.mllm.vision(tiles).square().sum().backward()
    for name in ("attention.projection_layer", "mlp.fc2"):
        grad = grown.get_parameter(f"{new}.{name}.weight").grad
        assert grad is not None
        assert float(grad.abs().max()) > 0


def test_a_tokenizer_that_lost_a_token_is_not_mended(make_model: Make, tmp_path: Path) -> None:
    """Given a new row, the token would begin anew in a model that knows it."""
    make_model(mask_width=16).save_pretrained(tmp_path)
    file = tmp_path / "tokenizer.json"
    content = json.loads(file.read_text())
    content["added_tokens"] = [entry for entry in content["added_tokens"] if entry["content"] != "[SEG]"]
    file.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json lacks \[SEG\]; restore the file"):
        VisionLLM.from_pretrained(tmp_path)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_tied_weights_are_written_once(model: Any, tmp_path: Path, dtype: torch.dtype | None) -> None:
    model.save_pretrained(tmp_path, dtype=dtype)
    tensors = load_file(tmp_path / WEIGHTS)
    tied = {"mllm.net.lm_head.weight", "mllm.net.model.language_model.embed_tokens.weight"}
    assert len(tied & tensors.keys()) == 1
    distinct = {id(p) for p in model.parameters()}
    persistent = len(model.state_dict()) - len(dict(model.named_parameters(remove_duplicate=False)))
    assert len(tensors) == len(distinct) + persistent
    again = VisionLLM.from_pretrained(tmp_path)
    assert again.mllm.net.lm_head.weight is again.mllm.net.get_input_embeddings().weight


def test_nothing_on_disk_is_code(saved: Path) -> None:
    assert {path.name for path in saved.iterdir()} == {"config.json", WEIGHTS, "tokenizer.json"}
    values = json.loads((saved / "config.json").read_text())
    assert values["format_version"] == FORMAT_VERSION
    assert values["providers"].keys() == {"objects"}


def test_loading_does_not_touch_the_callers_settings(tiny_settings: Make) -> None:
    settings = tiny_settings()
    before = json.dumps(settings)
    from visionllm.runs import ModelConfig, build_model

    build_model(ModelConfig(**settings))
    assert json.dumps(settings) == before


def without_the_tied(tensors: dict[str, Tensor]) -> None:
    for name in [name for name in tensors if "embed_tokens" in name or "lm_head" in name]:
        del tensors[name]


BROKEN: list[tuple[str, Callable[[Path], object], str]] = [
    ("no config", lambda f: (f / "config.json").unlink(), "config.json: missing"),
    ("config is no JSON", lambda f: (f / "config.json").write_text("{"), "not valid JSON"),
    ("config is a list", lambda f: (f / "config.json").write_text("[]"), "not a VisionLLM checkpoint"),
    ("config of bytes", lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00"), "not valid JSON"),
    ("another model's", lambda f: change_config(f, model_type="llama"), "llama"),
    ("no version", lambda f: change_config(f, format_version="gone"), "not a VisionLLM checkpoint"),
    ("newer", lambda f: change_config(f, format_version=FORMAT_VERSION + 1), "upgrade"),
    ("too old", lambda f: change_config(f, format_version=-3), "older release"),
    ("no mllm", lambda f: change_config(f, mllm=None), "mllm"),
    ("mllm is a list", lambda f: change_config(f, mllm=[1]), "mllm"),
    ("decoders are a list", lambda f: change_config(f, decoders=[1]), "decoders"),
    ("unknown decoder", lambda f: change_config(f, decoders={"nosuch": {}}), "'nosuch' is not installed"),
    ("tiles", lambda f: change_config(f, max_tiles=0), "max_tiles"),
    ("no tokenizer", lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json: missing"),
    ("no weights", lambda f: (f / WEIGHTS).unlink(), "no .safetensors"),
    ("pickle only", lambda f: (f / WEIGHTS).rename(f / "pytorch_model.bin"), "no .safetensors"),
    ("cut weights", lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-100]), "broken"),
    ("empty weights", lambda f: (f / WEIGHTS).write_bytes(b""), "broken"),
    ("broken index", lambda f: (f / "model.safetensors.index.json").write_text("[]"), "no index of weights"),
    ("missing key", lambda f: change_weights(f, lambda t: t.pop(PRESENCE)),
     "missing decoders.objects.presence_weight"),
    ("missing tied key", lambda f: change_weights(f, without_the_tied),
     "missing mllm.net.lm_head.weight"),
    ("left-over key", lambda f: change_weights(f, lambda t: t.update(extra=torch.zeros(1))), "unexpected extra"),
    ("wrong shape", lambda f: change_weights(f, lambda t: t.update({PRESENCE: torch.zeros(3)})),
     r"presence_weight \(3,\) instead of \(2,\)"),
    ("NaN", lambda f: change_weights(f, lambda t: t[PRESENCE].fill_(float("nan"))), "NaN"),
    ("infinity", lambda f: change_weights(f, lambda t: t[PRESENCE].fill_(float("inf"))), "NaN"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "words"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_a_broken_checkpoint_is_one_line(folder: Path, change: Callable[[Path], object], words: str) -> None:
    change(folder)
    with pytest.raises(VisionLLMError, match=words) as caught:
        VisionLLM.from_pretrained(folder)
    assert isinstance(caught.value, (CheckpointError, ConfigError))
    assert "\n" not in str(caught.value)


def test_a_wrong_key_of_a_decoder_names_its_path(folder: Path) -> None:
    values = json.loads((folder / "config.json").read_text())["decoders"]
    values["objects"]["treshold"] = 0.5
    change_config(folder, decoders=values)
    with pytest.raises(ConfigError, match=r"decoders\.objects: treshold: unknown key \(did you mean threshold\?\)"):
        VisionLLM.from_pretrained(folder)


def test_a_missing_plugin_says_what_to_install(folder: Path) -> None:
    provider = {"distribution": "depth-anyone", "version": "2.0"}
    change_config(folder, decoders={"depth": {}}, providers={"depth": provider})
    with pytest.raises(CheckpointError, match=r"pip install depth-anyone==2\.0"):
        VisionLLM.from_pretrained(folder)


@pytest.mark.parametrize("name", ["nowhere", "a/b/c", "./x", "/nowhere/at/all", "owner/name"])
def test_no_such_checkpoint(name: str) -> None:
    with pytest.raises(CheckpointError, match=name.split("/")[-1]):
        locate(name)


def test_a_place_that_cannot_hold_a_checkpoint(model: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(VisionLLMError, match=r"save_directory: .*file: cannot be made a folder"):
        model.save_pretrained(tmp_path / "file")


def test_a_file_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("")
    with pytest.raises(CheckpointError, match="no such folder"):
        locate(tmp_path / "x.txt")


def test_shards_are_read_together(model: Any, folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = sorted(tensors)
    for i in range(2):
        save_file({name: tensors[name] for name in names[i::2]}, folder / f"model-{i + 1:05d}-of-00002.safetensors")
    again = VisionLLM.from_pretrained(folder)
    assert all(torch.equal(v, everything(again)[n]) for n, v in everything(model).items())


def test_saving_over_shards_leaves_none(model: Any, folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "model-00001-of-00002.safetensors")
    model.save_pretrained(folder)
    assert [path.name for path in folder.glob("*.safetensors")] == [WEIGHTS]


def test_the_fingerprint_tells_weights_apart(make_model: Make) -> None:
    one, same, other = make_model(seed=3), make_model(seed=3), make_model(seed=4)
    assert one.fingerprint == same.fingerprint != other.fingerprint
    # Settings are told apart, too, and weights that stand in another order.
    first = one.fingerprint
    one.configure("objects", threshold=0.77)
    assert one.fingerprint != first
    same.config.quote = not same.config.quote
    assert same.fingerprint != first
    same.config.quote = not same.config.quote
    assert same.fingerprint == first
    with torch.no_grad():
        weight = next(same.train().parameters())
        weight.copy_(weight.flatten().flip(0).reshape(weight.shape))
    assert same.eval().fingerprint != first


def test_load_weights_fills_ties_from_either_name() -> None:
    """Other writers keep the other name of a tied pair."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(2, 2, bias=False)
            self.b = nn.Linear(2, 2, bias=False)
            self.b.weight = self.a.weight

    import tempfile

    for name in ("a.weight", "b.weight"):
        with tempfile.TemporaryDirectory() as place:
            save_file({name: torch.full((2, 2), 7.0)}, Path(place) / WEIGHTS)
            module = Tied()
            load_weights(module, Path(place))
            assert bool((module.a.weight == 7).all())
            assert module.a.weight is module.b.weight


class Pair(nn.Module):
    """Two parts that hold the same, and one that does not."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.third = (nn.Linear(64, 64, bias=False) for _ in range(3))


@pytest.mark.parametrize("shard", [None, 20_000])
def test_what_is_alike_is_stored_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shard: int | None) -> None:
    """In one file and in several; each name is found again, also when a part is taken by itself."""
    pair = Pair()
    pair.other.load_state_dict(pair.one.state_dict())
    if shard is not None:
        monkeypatch.setattr(checkpoint, "save_torch_state_dict", partial(save_torch_state_dict, max_shard_size=shard))
    save_weights(pair, tmp_path)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) == (1 if shard is None else 2)
    assert sum(len(load_file(file)) for file in files) == 2
    for prefix in ("", "one", "other"):
        again = Pair()
        if prefix:
            take_weights(again, {prefix: str(tmp_path)})
        else:
            load_weights(again, tmp_path)
        for name, value in pair.state_dict().items():
            assert torch.equal(again.state_dict()[name], value) == name.startswith(prefix), name
        assert again.one.weight is not again.other.weight
    # What parts again is stored apart again.
    with torch.no_grad():
        again.other.weight[0, 0] += 1
    save_weights(again, tmp_path)
    assert sum(len(load_file(file)) for file in tmp_path.glob("*.safetensors")) == 3


def test_an_older_version_is_read(model: Any, folder: Path) -> None:
    """Version 2 stored everything for itself, and says so of nothing."""
    change_config(folder, format_version=2)
    assert VisionLLM.from_pretrained(folder).fingerprint == model.fingerprint


def test_config_shows_the_width_of_the_language_model(model: Any) -> None:
    assert model.config.hidden_size == 32
    assert model.config.get_text_config().num_hidden_layers == 2
    assert VisionLLMConfig().get_text_config() is not None
