"""What a training run is: its configuration, and the model, data and weights of losses that it names."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from tokenizers import Tokenizer

from visionllm.checkpoint import copy_weights, take_weights
from visionllm.config import VisionLLMConfig
from visionllm.core.config import Config, apply_overrides, read_yaml, validate
from visionllm.core.errors import ConfigError
from visionllm.core.task import TASKS
from visionllm.datasets.catalog import Dataset, open_dataset
from visionllm.datasets.loader import Loader
from visionllm.datasets.plan import item_rng
from visionllm.datasets.transforms import Augment
from visionllm.model import VisionLLM
from visionllm.optim import OptimConfig, make_optimizer
from visionllm.routing.render import Style
from visionllm.routing.vocabulary import Vocabulary

_STYLE = 7  # stream of random numbers of a position that words its questions


class ModelConfig(Config):
    """A model from scratch, or a checkpoint to go on from; ``mllm`` and ``decoders`` override its keys."""

    start: str | None = Field(
        None, description="checkpoint folder or hub id to start from; 'embedded' for the built-in one"
    )
    tokenizer: str | None = Field(None, description="tokenizer.json of a model from scratch, relative to the config")
    fresh: list[str] = Field(default_factory=list, description="prefixes of parameter names that start anew")
    copies: dict[str, str] = Field(
        default_factory=dict, description="prefix of parameter names -> prefix of those they begin as a copy of"
    )
    parts: dict[str, str] = Field(
        default_factory=dict, description="prefix of parameter names -> checkpoint folder that they are taken from"
    )
    mllm: dict[str, Any] = Field(default_factory=dict)
    decoders: dict[str, dict[str, Any]] = Field(default_factory=dict)
    regions: dict[str, Any] | None = Field(None, description="keys of a RegionConfig; null takes no regions as input")
    max_tiles: PositiveInt = 12


class Source(Config):
    """One data set of the mixture."""

    dataset: str
    split: str = "train"
    task: str | None = Field(None, description="what is asked of it, where that is not the card's task")
    weight: float = Field(1.0, ge=0)
    balance: PositiveFloat | None = Field(
        None, description="pictures of categories that fewer than this share of them show come more often; None: as is"
    )
    augment: Augment | None = Field(None, description="keys over those of the run's `augment`, for this data set")

    def augmented(self, usual: Augment | None) -> Augment | None:
        """How samples of this data set are changed: as those of the run, but for what is said here."""
        if self.augment is None or usual is None:
            return self.augment or usual
        return usual.model_copy(update={key: getattr(self.augment, key) for key in self.augment.model_fields_set})

    def open(self, data_root: str | None) -> Dataset:
        """The data set, as the mixture reads it."""
        found = open_dataset(self.dataset, self.split, data_root, task=self.task)
        return found if self.balance is None else found.balanced(self.balance)


class RunConfig(Config):
    """How long, how much at a time, and where to."""

    out: str
    steps: PositiveInt
    batch_size: PositiveInt = Field(8, description="samples of a step over all ranks and the accumulation window")
    accumulate: PositiveInt = 1
    seed: int = 0
    precision: Literal["no", "bf16", "fp16"] = "no"
    attention: Literal["sdpa", "eager", "matmul"] | None = Field(
        None, description="None leaves it as the model was built; `matmul` is for bf16 on a CPU"
    )
    workers: NonNegativeInt = 0
    tree: float = Field(0.3, ge=0, le=1, description="share of samples in the tree layout")
    log_every: PositiveInt = 20
    save_every: PositiveInt = 500
    conflict_every: NonNegativeInt = Field(0, description="steps between two looks at who fights whom; 0 never looks")
    conflict_on: str = Field("mllm", description="prefix of the parameters in which data sets may fight")
    hold: list[str] = Field(
        default_factory=list,
        description="decoders whose links stay near those of the model at the start, by the loss `held`; its weight "
        "says how near",
    )
    hold_to: str | None = Field(
        None, description="checkpoint, or `embedded`, whose links these are instead; None: the model's at the start"
    )
    keep: PositiveInt = Field(2, description="checkpoints kept")
    cache_bytes: NonNegativeInt = Field(1_000_000_000, description="memory for decoded pictures")
    max_side: PositiveInt | None = None
    data_root: str | None = None


class TrainConfig(Config):
    """A training run."""

    model: ModelConfig
    data: list[Source] = Field(min_length=1)
    train: RunConfig
    optim: OptimConfig = OptimConfig()
    augment: Augment | None = None
    loss_weights: dict[str, float] = Field(
        default_factory=dict, description="loss, or decoder for all of its losses -> weight, over the task's own"
    )


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """A training config from YAML and ``key=value`` words; a ``model`` that is a path is read from there."""
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected keys and values, got {type(values).__name__}")
    model = values.get("model")
    if isinstance(model, str):
        values = {**values, "model": _model_file(Path(path).parent / model)}
    return validate(TrainConfig, apply_overrides(values, overrides), source=str(path))


def _model_file(path: Path) -> dict[str, Any]:
    values = read_yaml(path)
    if isinstance(values, dict) and values.get("tokenizer"):
        values = {**values, "tokenizer": str(path.parent / values["tokenizer"])}
    return values


def build_model(config: ModelConfig) -> VisionLLM:
    """A model from scratch, or from a checkpoint with overrides of its settings.

    Raises:
        ConfigError: neither a checkpoint nor what a model from scratch needs is given.
    """
    if config.start is not None:
        if config.tokenizer is not None:
            raise ConfigError("model.tokenizer: start brings its own; leave this key out")
        model = pretrained(config.start, fresh=config.fresh, decoders=config.decoders, mllm=config.mllm,
                            regions=config.regions, parts=config.parts)  # fmt: skip
        copy_weights(model, config.copies)
        return model
    if config.tokenizer is None or not config.mllm:
        raise ConfigError("model: give start (a checkpoint), or mllm and tokenizer for a model from scratch")
    try:
        tokenizer = Tokenizer.from_file(config.tokenizer)
    except Exception:  # noqa: BLE001 (the library raises bare Exception for a missing or broken file)
        raise ConfigError(f"model.tokenizer: {config.tokenizer}: no readable tokenizer.json") from None
    settings = VisionLLMConfig(
        mllm=config.mllm, decoders=config.decoders, max_tiles=config.max_tiles, regions=config.regions
    )
    model = VisionLLM(settings, lambda tasks: Vocabulary(tokenizer, tasks))
    take_weights(model, config.parts)
    copy_weights(model, config.copies)
    return model


def pretrained(start: str, **changes: Any) -> VisionLLM:
    """A checkpoint by folder or hub id, or the ``embedded`` one."""
    return VisionLLM.from_pretrained(None if start == "embedded" else start, **changes)


def make_loader(config: TrainConfig, rank: int = 0, world_size: int = 1) -> Loader:
    """The plan of a run and what reads it."""
    run = config.train
    return Loader(
        [source.open(run.data_root) for source in config.data],
        [source.weight for source in config.data],
        batch_size=run.batch_size, seed=run.seed, rank=rank, world_size=world_size, max_side=run.max_side,
        augment=[source.augmented(config.augment) for source in config.data], cache_bytes=run.cache_bytes,
    )  # fmt: skip


def style_at(run: RunConfig, position: int) -> Style:
    """Wording and layout of the sample at a position of the plan."""
    rng = item_rng(run.seed, position, _STYLE)
    return Style(rng=rng, tree=bool(rng.random() < run.tree))


def weights_of(config: TrainConfig, model: VisionLLM) -> dict[str, float]:
    """The weight of every loss.

    Raises:
        ConfigError: there is no loss or decoder of a name; its weight would change nothing, unseen.
    """
    known = model.loss_weights()
    found = dict(known)
    given = config.loss_weights
    # Those of single losses stand over those of their decoder, whichever is written first.
    for name, weight in sorted(given.items(), key=lambda item: item[0] in known):
        own = [loss for loss in known if loss == name or loss.startswith(f"{name}/")]
        if not own:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
            raise ConfigError(f"loss_weights.{name}: no such loss ({hint})")
        found |= dict.fromkeys(own, weight)
    if config.train.hold_to is not None and not config.train.hold:
        raise ConfigError("train.hold_to: goes with train.hold, decoders whose links are held; set both or none")
    if bool(config.train.hold) != (found["held"] > 0):
        raise ConfigError("loss_weights.held: goes with train.hold, decoders whose links are held; set both or none")
    if found["meant"] > 0 and not config.train.hold:
        raise ConfigError("loss_weights.meant: goes with train.hold, decoders whose links are held; set both or none")
    if found["gaze"] > 0 and config.train.attention != "matmul":
        raise ConfigError("loss_weights.gaze: reads attention, which only train.attention: matmul gives; set it")
    return found


def check_tasks(loader: Loader, model: VisionLLM) -> None:
    """A data set may only ask what the model can answer.

    Raises:
        ConfigError: it asks for a task that is not loaded.
    """
    loaded = {task.name for task in model.tasks}
    for dataset in loader.datasets:
        for name in sorted(dataset.tasks - loaded):
            raise ConfigError(
                f"data: {dataset.key}: asks for {name}, which is not loaded in this model; switch it on under "
                f"model.decoders.{TASKS[name].decoder}, or under another decoder that serves it"
            )


def checkpoints(folder: Path) -> list[Path]:
    """Folders of the checkpoints that a run has written, the newest last."""
    return sorted(folder.glob("step-*"))


def describe(config: TrainConfig) -> str:
    """The plan of a run before it costs anything: shares, epochs, parameters.

    Raises:
        VisionLLMError: a key is wrong whose mistake shows once model and data are there; the run would say the same.
    """
    model, loader, run = build_model(config.model), make_loader(config), config.train
    weights_of(config, model)
    make_optimizer(model, config.optim)
    check_tasks(loader, model)
    total = sum(source.weight for source in config.data)
    seen = run.steps * run.batch_size
    lines = [f"{run.steps:,} steps of {run.batch_size} samples = {seen:,} samples -> {run.out}"]
    lines += [f"{held} is there: --resume goes on from it" for held in checkpoints(Path(run.out))[-1:]]
    lines.append("")
    for source, dataset in zip(config.data, loader.datasets, strict=True):
        share = source.weight / total
        lines.append(
            f"{dataset.key:28} {len(dataset):>10,} samples  {share:6.1%}  {share * seen / len(dataset):8.2f} epochs"
        )
        lines += [f"    {dataset.report()}"] if dataset.report() else []
    lines.append("")
    for name, part in [("mllm", model.mllm), ("link_queries", model.link_queries), *model.decoders.items()]:
        count = sum(p.numel() for p in part.parameters())
        lines.append(f"{name:28} {count / 1e6:10.2f} M parameters")
    return "\n".join([*lines, f"plan digest {loader.plan.digest(min(seen, 10_000))}"])
