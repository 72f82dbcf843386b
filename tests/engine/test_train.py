"""Training at test size: what a run is made of, and that it goes on as if it had never stopped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from visionllm import open_dataset
from visionllm.core.errors import CheckpointError, ConfigError, VisionLLMError
from visionllm.datasets.transforms import Augment
from visionllm.decoders import ObjectsDecoder
from visionllm.decoders.objects.phrases import Standardise
from visionllm.engine import _length, train, weigh
from visionllm.model import Losses, VisionLLM
from visionllm.runs import Source, TrainConfig, build_model, describe, load_config, weights_of

Make = Callable[..., Any]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    found = {}
    for path in sorted(folder.rglob("*.safetensors")):
        found |= {f"{path.name}/{name}": value for name, value in load_file(path).items()}
    return found


MUON = {"optim__muon": ["mllm.net.model.language_model"]}


@pytest.mark.parametrize("changes", [{}, {"optim__ema": 0.0, "train__accumulate": 2, "train__workers": 0, **MUON}])
def test_a_resumed_run_is_the_run(write: Make, changes: dict[str, Any], tmp_path: Path) -> None:
    """Weights, running average and the optimiser's memory, bit for bit."""
    whole = train(load_config(write("whole", **changes)))
    assert whole == tmp_path / "whole" / "step-0000006" / "model"
    shutil.copytree(tmp_path / "whole" / "step-0000003", tmp_path / "halves" / "step-0000003")
    halves = train(load_config(write("halves", **changes)), resume=True)
    one, other = tensors(whole.parent), tensors(halves.parent)
    assert one.keys() == other.keys()
    assert any("optimizer" in name and "exp_avg_sq" in name for name in one)
    assert any("raw" in name for name in one) == (changes == {})
    assert not [name for name, value in one.items() if not torch.equal(value, other[name])]
    early = tensors(tmp_path / "whole" / "step-0000003")
    assert any(
        not torch.equal(value, early[name]) for name, value in one.items() if "lm_head" in name or "embed" in name
    )
    VisionLLM.from_pretrained(halves)
    log = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log] == [2, 4, 6]
    assert {"loss", "lm", "objects/class", "lr", "grad_norm", "samples/s"} <= log[-1].keys()


def test_the_average_is_what_is_shipped(write: Make) -> None:
    folder = train(load_config(write(train__steps=2))).parent
    raw, shipped = load_file(folder / "raw.safetensors"), load_file(folder / "model" / "model.safetensors")
    assert any(not torch.equal(raw[name], value) for name, value in shipped.items())


def test_only_the_newest_checkpoints_are_kept(write: Make, tmp_path: Path) -> None:
    train(load_config(write(train__steps=3, train__save_every=1, train__keep=2, optim__ema=0.0)))
    assert sorted(p.name for p in (tmp_path / "run").glob("step-*")) == ["step-0000002", "step-0000003"]
    assert not list((tmp_path / "run").glob(".*"))


@pytest.mark.parametrize("parts", [2, 3])
def test_accumulation_gives_the_same_gradient(
    write: Make, tmp_path: Path, parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums over global counts: how a step is cut does not matter. The first moment holds the gradient."""
    # Running statistics follow the pieces, as those of batch normalisation do.
    monkeypatch.setattr(Standardise, "_observe", lambda *_: None)
    same = {"train__steps": 1, "train__batch_size": 6, "optim__ema": 0.0, "optim__clip": 1e9, "train__tree": 0.5}
    same["model"] = None
    gradients = []
    for accumulate in (1, parts):
        path = write(
            f"by {accumulate}", **{k: v for k, v in same.items() if v is not None}, train__accumulate=accumulate
        )
        # Denoising draws as many queries as the largest picture of a part has boxes; without it nothing is drawn.
        config = load_config(path, ["model.decoders.objects.denoising=0", "optim.weight_decay=0"])
        memory = load_file(train(config).parent / "optimizer.safetensors")
        gradients.append({name: value / 0.1 for name, value in memory.items() if name.endswith("::exp_avg")})
    assert gradients[0].keys() == gradients[1].keys()
    largest = max(float(value.abs().max()) for value in gradients[0].values())
    assert largest > 0.01
    for name, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], value, atol=1e-5 * max(1, largest), rtol=1e-4, msg=name)


def test_losses_are_sums_over_counts_times_weights() -> None:
    sums = {"lm": torch.tensor(6.0), "objects/l1": torch.tensor(8.0), "objects/class": torch.tensor(2.0)}
    losses = Losses(sums=sums, weights={"lm": 1.0, "objects/l1": 5.0, "objects/class": 1.0})
    counts = {"lm": 3.0, "objects/l1": 4.0, "objects/class": 0.0}  # nothing to count: divided by one
    logged: dict[str, float] = {}
    total = weigh(losses, counts, {"lm": 0.5}, logged)
    assert float(total) == pytest.approx(0.5 * 2 + 5 * 2 + 2)
    weigh(losses, counts, {"lm": 0.5}, logged)  # the second part of a window
    assert logged == pytest.approx({"lm": 4, "objects/l1": 4, "objects/class": 4, "loss": 26})


@pytest.mark.parametrize("every", [True, False])
def test_a_loss_of_weight_zero_is_noted_and_pulls_nothing(every: bool) -> None:
    """Where other ranks wait for every gradient it is zero, elsewhere there is none."""
    quiet, loud, logged = torch.ones((), requires_grad=True), torch.ones((), requires_grad=True), dict[str, float]()
    losses = Losses(sums={"lm": 3 * quiet, "sight": 2 * loud}, weights={"lm": 1.0, "sight": 0.0})
    total = weigh(losses, {"lm": 1.0, "sight": 1.0}, {"lm": 0.0, "sight": 1.0}, logged, every=every)
    total.backward()
    assert logged == {"lm": 3, "sight": 2, "loss": 2}
    assert float(loud.grad) == 2
    assert (quiet.grad is not None and float(quiet.grad) == 0) if every else quiet.grad is None


def test_weights_of_a_decoder_and_of_single_losses(write: Make) -> None:
    """Whichever is written first, what is said of a single loss stands."""
    for given in ({"objects": 0.0, "objects/l1": 2.0}, {"objects/l1": 2.0, "objects": 0.0}):
        config = load_config(write(loss_weights={"lm": 3.0, **given}))
        model = build_model(config.model)
        weights = weights_of(config, model)
        assert set(weights) == set(model.loss_weights())
        assert (weights["lm"], weights["objects/l1"], weights["objects/class"]) == (3.0, 2.0, 0.0)
        assert model.silent(weights) == set()
        assert model.silent({**weights, "objects/l1": 0.0}) == {"objects"}


def test_a_decoder_from_which_nothing_is_learned_does_not_run(write: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: Any) -> None:
        raise AssertionError("it ran")

    monkeypatch.setattr(ObjectsDecoder, "loss", run)
    with pytest.raises(AssertionError, match="it ran"):
        train(load_config(write("heard", train__steps=1)))
    folder = train(load_config(write("silent", train__steps=2, loss_weights={"objects": 0})))
    last = json.loads((folder.parents[1] / "log.jsonl").read_text().splitlines()[-1])
    assert last["lm"] > 0
    assert not [name for name in last if name.startswith("objects/")]


def test_gazes_are_learned_where_attention_is_to_be_had(write: Make) -> None:
    weights = {"sight": 1.0, "gaze": 1.0}
    with pytest.raises(ConfigError, match=r"loss_weights\.gaze: .*train\.attention: matmul"):
        train(load_config(write(loss_weights=weights)))
    path = write("gazes", train__steps=40, train__attention="matmul", optim__lr=3e-3, loss_weights=weights)
    values = yaml.safe_load(path.read_text())
    values["data"] = [{"dataset": values["data"][0]["dataset"], "task": "questions"}]
    path.write_text(yaml.safe_dump(values))
    folder = train(load_config(path))
    log = [json.loads(line) for line in (folder.parents[1] / "log.jsonl").read_text().splitlines()]
    first, last = (np.mean([entry["gaze"] for entry in part]) for part in (log[:3], log[-3:]))
    assert last < 0.8 * first


@pytest.mark.parametrize("lists", [False, True])
def test_a_vision_tower_learns_to_see_alone(write: Make, lists: bool) -> None:
    """What is where is learned, and nothing else moves; a part with nothing but a list teaches nothing."""
    seeing = ("mllm.net.model.vision_tower", "mllm.net.model.multi_modal_projector")
    scale = {"mllm": 0, "link_queries": 0, "decoders": 0} | dict.fromkeys(seeing, 1)
    quiet = {"lm": 0, "words": 0, "end": 0, "link": 0, "sight": 1}
    path = write(train__steps=20, train__accumulate=4, optim__lr=1e-2, optim__lr_scale=scale, loss_weights=quiet)
    values = yaml.safe_load(path.read_text())
    values["data"][0]["task"] = "captions"
    values["data"] = values["data"][: 1 + lists]
    path.write_text(yaml.safe_dump(values))
    config = load_config(path)
    torch.manual_seed(config.train.seed)
    before = build_model(config.model).state_dict()
    folder = train(config)
    after = VisionLLM.from_pretrained(folder).state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed
    assert all(name.startswith(seeing) for name in changed), changed
    log = [json.loads(line) for line in (folder.parents[1] / "log.jsonl").read_text().splitlines()]
    assert lists or log[-1]["sight"] < log[0]["sight"]
    assert [entry["loss"] for entry in log] == [entry["sight"] for entry in log]


@pytest.mark.parametrize("frozen", ["mllm", "decoders"])
def test_frozen_parts_stay(write: Make, frozen: str) -> None:
    """With all that they hold: running statistics too."""
    config = load_config(write(train__steps=2, optim__ema=0.0, optim__lr_scale={frozen: 0, "link_queries": 0.5}))
    torch.manual_seed(3)
    before = build_model(config.model).state_dict()
    after = VisionLLM.from_pretrained(train(config)).state_dict()
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert moved
    assert not {name for name in moved if name.startswith(frozen)}
    assert any(name.startswith("link_queries") for name in moved)


def test_links_are_held_where_the_run_began(write: Make, tmp_path: Path) -> None:
    """Not where it was interrupted: a resumed run is the run."""
    first = train(load_config(write("first", train__steps=1)))
    changes = {"model": {"start": str(first)}, "train__hold": ["objects"], "loss_weights": {"held": 10.0}}
    whole = train(load_config(write("whole", **changes)))
    shutil.copytree(tmp_path / "whole" / "step-0000003", tmp_path / "halves" / "step-0000003")
    halves = train(load_config(write("halves", **changes)), resume=True)
    one, other = tensors(whole.parent), tensors(halves.parent)
    assert not [name for name, value in one.items() if not torch.equal(value, other[name])]
    log = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert 0 < log[0]["held"] < log[-1]["held"]


def test_links_are_held_where_another_model_has_them(write: Make, tmp_path: Path) -> None:
    """At the first step too, where a run that holds its own links finds none that moved."""
    before = train(load_config(write("before", train__steps=1, optim={"lr": 1.0e-5})))
    after = train(load_config(write("after", model={"start": str(before)}, train__steps=3)))
    changes = {"model": {"start": str(after)}, "train__hold": ["objects"], "train__steps": 1,
               "train__log_every": 1, "loss_weights": {"held": 10.0}}  # fmt: skip
    for name, to, moved in (("own", None, False), ("same", str(after), False), ("other", str(before), True)):
        train(load_config(write(name, **changes, train__hold_to=to)))
        log = [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        assert (log[0]["held"] > 1e-7) == moved, name
    with pytest.raises(ConfigError, match=r"hold_to: goes with train\.hold"):
        train(load_config(write("alone", train__hold_to=str(before))))


@pytest.mark.parametrize(
    "changes", [{"train__hold": ["objects"]}, {"loss_weights": {"held": 1.0}}, {"loss_weights": {"meant": 1.0}}]
)
def test_links_are_held_with_a_weight(write: Make, changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"goes with train\.hold") as caught:
        train(load_config(write(**changes)))
    assert "\n" not in str(caught.value)


def test_going_on_from_a_checkpoint(write: Make, tmp_path: Path) -> None:
    first = train(load_config(write(train__steps=1)))
    config = load_config(write("second"), [f"model={{start: {first}, decoders: {{objects: {{threshold: 0.7}}}}}}"])
    model = build_model(config.model)
    assert model.decoders["objects"].operating_point("detection") == 0.7
    assert model.config.decoders["objects"]["longest"] == 96
    before = load_file(first / "model.safetensors")
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    with pytest.raises(VisionLLMError, match="objects"):
        build_model(load_config(write("third"), [f"model={{start: {first}, decoders: {{object: {{}}}}}}"]).model)


def test_the_plan_is_told(write: Make) -> None:
    text = describe(load_config(write()))
    assert "tiny_scenes/train" in text
    assert "66.7%" in text
    assert "plan digest" in text
    assert "--resume" not in text


def test_the_plan_tells_of_a_run_that_was_begun(write: Make) -> None:
    train(load_config(write(train__steps=1)))
    assert "step-0000001 is there: --resume goes on from it" in describe(load_config(write()))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"loss_weights": {"objects/clas": 2.0}}, "did you mean objects/class"),
        ({"optim__lr_scale": {"vision_tower": 0.1}}, r"lr_scale\.vision_tower"),
        ({"data": [{"dataset": "scenes", "task": "pose"}]}, "asks for pose, which is not loaded"),
    ],
)
def test_a_plan_that_cannot_run_is_none(write: Make, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        describe(load_config(write(**changes)))


def test_a_place_that_cannot_be_written_is_told_first(write: Make, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(VisionLLMError, match=r"train\.out: .*file/run: cannot be made a folder"):
        train(load_config(write(train__out=str(tmp_path / "file" / "run"))))


# --- configuration --------------------------------------------------------------------------------------------------

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"train__step": 3}, r"run\.yaml: train\.step: unknown key \(did you mean steps\?\)"),
    ({"optim__lr_scal": {}}, r"optim\.lr_scal: unknown key \(did you mean lr_scale\?\)"),
    ({"train__steps": 0}, r"train\.steps: .*got 0"),
    ({"train__precision": "fp8"}, r"train\.precision: .*got 'fp8'"),
    ({"data": []}, "data: "),
    ({"data": [{"dataset": "scenes", "wieght": 2}]}, r"data\.0\.wieght: unknown key \(did you mean weight\?\)"),
    ({"train": {"steps": 3}}, r"train\.out: missing"),
    ({"augment": {"flipp": 1}}, r"augment\.flipp: unknown key \(did you mean flip\?\)"),
    ({"model": {"tokeniser": "x"}}, r"model\.tokeniser: unknown key \(did you mean tokenizer\?\)"),
    ({"model": 3}, "model: "),
    ({"model": "nowhere.yaml"}, r"nowhere\.yaml: no such file"),
]


@pytest.mark.parametrize(("changes", "words"), WRONG)
def test_a_wrong_key_names_file_path_and_cure(write: Make, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        load_config(write(**changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "3", "- a", "a: [", "\t", "!!python/object:os.system {}"])
def test_a_file_that_is_no_config(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"x\.yaml") as caught:
        load_config(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("train.steps", "expected key=value"),
        ("=3", "expected key=value"),
        ("train.steps=[", "not valid YAML"),
        ("train.steps=many", r"train\.steps"),
        ("train.steps.x=3", "holds a value"),
        ("train.stepps=3", r"did you mean steps\?"),
        ("nosection.x=3", "nosection: unknown key"),
    ],
)
def test_a_wrong_override(write: Make, word: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        load_config(write(), [word])
    assert "\n" not in str(caught.value)


def test_a_data_set_says_what_of_the_augmentation_is_its_own() -> None:
    usual = Augment(flip=0.25, blur=0.5)
    assert Source(dataset="scenes").augmented(usual) is usual
    assert Source(dataset="scenes", augment={"blur": 0.1}).augmented(usual) == Augment(flip=0.25, blur=0.1)
    assert Source(dataset="scenes", augment={"blur": 0.1}).augmented(None) == Augment(blur=0.1)
    assert Source(dataset="scenes").augmented(None) is None


def test_overrides_are_yaml(write: Make) -> None:
    config = load_config(write(), ["train.steps=20", "optim.lr=1e-5", "augment=null", "loss_weights={lm: 0.5}"])
    assert (config.train.steps, config.optim.lr, config.augment) == (20, 1e-5, None)
    assert config.loss_weights == {"lm": 0.5}
    assert load_config(write(), ["train.seed=9"]).train.batch_size == 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"loss_weights": {"objects/clas": 2.0}},
            r"loss_weights\.objects/clas: no such loss \(did you mean objects/class\?\)",
        ),
        ({"optim__lr_scale": {"vision_tower": 0.1}}, r"lr_scale\.vision_tower: no parameter starts so"),
        (
            {"train__conflict_every": 1, "train__conflict_on": "llm"},
            "conflict_on: no trained parameter starts with 'llm'",
        ),
        ({"model": {}}, "start"),
        ({"model": {"tokenizer": "nowhere.json", "mllm": {"a": 1}}}, r"tokenizer: nowhere\.json"),
        ({"model": {"start": "nowhere"}}, "nowhere: no such folder"),
        ({"model": {"start": "embedded", "mllm": {"text_config": {"num_hiden_layers": 10}}}}, "num_hidden_layers"),
    ],
)
def test_what_shows_when_the_model_is_built(write: Make, changes: dict[str, Any], words: str) -> None:
    with pytest.raises((ConfigError, CheckpointError), match=words) as caught:
        train(load_config(write(**changes)))
    assert "\n" not in str(caught.value)


def configs(root: Path) -> list[Path]:
    return sorted((root / "configs" / "train").rglob("*.yaml"))


@pytest.mark.parametrize("path", configs(Path(__file__).resolve().parents[2]), ids=lambda path: path.stem)
def test_every_training_config_loads(path: Path) -> None:
    config = load_config(path)
    assert isinstance(config, TrainConfig)
    if config.model.tokenizer is not None:
        assert Path(config.model.tokenizer).is_file()
    assert "/" not in config.train.out.removeprefix("outputs/")


def test_looking_at_conflicts_changes_no_run(write: Make) -> None:
    quiet = train(load_config(write("quiet", train__steps=2, train__log_every=2)))
    config = load_config(write("looking", train__steps=2, train__log_every=2, train__conflict_every=1))
    for name, value in tensors(train(config)).items():
        assert torch.equal(value, tensors(quiet)[name]), name
    (record,) = [json.loads(line) for line in (Path(config.train.out) / "log.jsonl").read_text().splitlines()]
    assert record["pull/tiny_scenes/train"] > 0
    assert record["pull/tiny_phrases/train"] > 0
    assert -1 <= record["cos/tiny_scenes/train|tiny_phrases/train"] <= 1


def test_a_folder_of_another_run_is_not_written_to(write: Make) -> None:
    config = load_config(write(train__steps=1))
    first = train(config)
    with pytest.raises(
        ConfigError, match=r"step-0000001 is another run's; go on with it \(--resume\), or name another"
    ):
        train(config)
    assert first.is_dir()
    assert train(config, resume=True) == first


@pytest.mark.parametrize(("name", "split", "task"), [
    ("scenes", "train", "questions"), ("scenes", "train", "detection"), ("scenes", "train", "captions"),
    ("scenes", "train", "looking"), ("phrases", "train", "detection"),
])  # fmt: skip
def test_lengths_are_guessed_near_enough_to_sort_by(name: str, split: str, task: str) -> None:
    """Rows are padded to the longest of their part: words that are not counted would be padded to the longest list."""
    model = VisionLLM.from_pretrained(decoders={"objects": {"looks": True}}, fresh=["link_queries.tables.[FIND]"])
    data = open_dataset(name, split, task=task)
    samples = [data.ask(index, np.random.default_rng(index)) for index in range(40)]
    true = np.array([model.processor.encode([sample]).input_ids.shape[1] for sample in samples])
    guessed = np.array([_length(sample, model.mllm.tokens_per_tile) for sample in samples])
    assert np.abs(guessed / true - 1).mean() < 0.2
