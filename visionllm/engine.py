"""Training and evaluation: the loop on one screen, what it needs below it."""

from __future__ import annotations

import difflib
import json
import math
import os
import shutil
import time
from collections.abc import Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from visionllm.checkpoint import copy_weights, load_weights, take_weights
from visionllm.config import VisionLLMConfig
from visionllm.conflict import conflicts
from visionllm.core.config import Config, apply_overrides, read_yaml, validate
from visionllm.core.errors import CheckpointError, ConfigError
from visionllm.core.sample import Sample
from visionllm.core.task import TASKS
from visionllm.datasets.catalog import Dataset, open_dataset
from visionllm.datasets.loader import Loader
from visionllm.datasets.plan import item_rng
from visionllm.datasets.transforms import Augment
from visionllm.distributed import agree_on_idle, global_counts, summed
from visionllm.logs import RunLog
from visionllm.model import Losses, VisionLLM
from visionllm.optim import Average, OptimConfig, make_optimizer, memory_of, remember, set_rate
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


def train(config: TrainConfig, *, resume: bool = False) -> Path:
    """Run a training and return the folder of the last checkpoint's model.

    What a step trains on, and the noise it draws, are functions of the seed and the step: a resumed run goes on as if
    it had never stopped.
    """
    from accelerate import Accelerator, DistributedDataParallelKwargs

    run = config.train
    folder = Path(run.out)
    held = sorted(folder.glob("step-*"))
    if held and not resume:
        # Its checkpoints would be taken for this run's, and the oldest deleted.
        raise ConfigError(f"train.out: {held[-1]} is another run's; go on with it (--resume), or name another folder")
    accelerator = Accelerator(
        mixed_precision=run.precision, kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        # Told nothing, accelerate lets each process of a machine without a GPU train a model of its own.
        cpu=not torch.accelerator.is_available(),
    )  # fmt: skip
    torch.manual_seed(run.seed)
    # Before anything copies it: the running average lives beside the weights.
    model = build_model(config.model).train().to(accelerator.device)
    if run.hold:
        # Before a checkpoint is gone on from: held is what was there at the start.
        model.hold(run.hold, None if run.hold_to is None else _pretrained(run.hold_to))
    weights = weights_of(config, model)
    silent = model.silent(weights)
    optimizer = make_optimizer(model, config.optim)
    loader = make_loader(config, accelerator.process_index, accelerator.num_processes)
    check_tasks(loader, model)
    average = Average(model, config.optim.ema) if config.optim.ema else None
    start = _resume(folder, model, optimizer, average, loader) if resume else 0
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    if run.attention is not None:
        model.attend(run.attention)
    log = RunLog(folder, steps=run.steps, start=start, enabled=accelerator.is_main_process)
    clock = Clock()
    sights = any(weights[name] > 0 for name in ("sight", "region", "gaze"))
    parameters = [p for p in model.parameters() if p.requires_grad]
    shared, noted = shared_parameters(config, model), dict[str, float]()
    batches = loader.steps(start, run.steps, workers=run.workers)
    for step in range(start, run.steps):
        with clock("data"):
            samples = next(batches)
            styles = [style_at(run, position) for position in loader.positions(step)]
        rate = set_rate(optimizer, config.optim, step, run.steps)
        torch.manual_seed(hash((run.seed, step, accelerator.process_index)))
        logged: dict[str, float] = {}
        parts = _split(samples, styles, run.accumulate, model.mllm.tokens_per_tile)
        with clock("encode"):
            micro = [model.processor.encode(s, w, multiple=32, sights=sights).to(accelerator.device) for s, w in parts]
        counts = global_counts(accelerator, model, micro)
        for index, batch in enumerate(micro):
            idle = agree_on_idle(accelerator, model, batch)
            last = index == len(micro) - 1
            with nullcontext() if last else accelerator.no_sync(wrapped):
                with clock("forward"), accelerator.autocast():
                    losses = wrapped(batch, idle=idle, silent=silent)
                # Other ranks wait for the gradient of all that a pass has used, be it zero.
                every = accelerator.num_processes > 1
                total = weigh(losses, counts, weights, logged, every=every) * accelerator.num_processes
                if not bool(torch.isfinite(total)):
                    raise FloatingPointError(f"step {step}: the loss is not finite: {logged}")
                # A part may hold only what teaches nothing here: lists of names, where pictures alone are learned.
                if total.requires_grad:
                    with clock("backward"):
                        accelerator.backward(total)
        with clock("update"):
            norm = accelerator.clip_grad_norm_(parameters, config.optim.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if average is not None:
                average.update(model, step)
        log.step(step + 1, summed(accelerator, model, logged))
        if shared and (step + 1) % run.conflict_every == 0 and accelerator.is_main_process:
            owners = [loader.owner(position) for position in loader.positions(step)]
            with accelerator.autocast():
                noted |= _conflicts(config, model, shared, samples, styles, owners)
        if (step + 1) % run.log_every == 0 or step + 1 == run.steps:
            norm_value = float(norm) if norm is not None else float("nan")
            log.write(step + 1, {"lr": rate, "grad_norm": norm_value, **clock.report(run.batch_size), **noted})
            noted.clear()
        if (step + 1) % run.save_every == 0 or step + 1 == run.steps:
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                _save(folder, step + 1, model, optimizer, average, loader, run.keep)
            accelerator.wait_for_everyone()
    log.close()
    if accelerator.is_main_process:
        print(loader.report)
    return folder / _name(run.steps) / "model"


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


def weigh(
    losses: Losses, counts: dict[str, float], weights: dict[str, float], logged: dict[str, float], *,
    every: bool = True,
) -> Tensor:  # fmt: skip
    """Sums over counts, weighted and added; ``logged`` gathers each part and the total.

    Args:
        every: False: no backward pass runs through a loss of weight zero.
    """
    total = next(iter(losses.sums.values())).new_zeros(())
    for name, value in losses.sums.items():
        part = value / max(1.0, counts[name])
        logged[name] = logged.get(name, 0.0) + float(part.detach())
        weight = weights.get(name, losses.weights[name])
        if every or weight:
            total = total + weight * part
    logged["loss"] = logged.get("loss", 0.0) + float(total.detach())
    return total


def shared_parameters(config: TrainConfig, model: VisionLLM) -> list[Tensor]:
    """Those in which data sets may fight; none where nobody wants to know.

    Raises:
        ConfigError: no trained parameter has the prefix.
    """
    if not config.train.conflict_every:
        return []
    prefix = config.train.conflict_on
    found = [p for name, p in model.named_parameters() if p.requires_grad and name.startswith(prefix)]
    if not found:
        raise ConfigError(f"train.conflict_on: no trained parameter starts with {prefix!r}; try mllm")
    return found


def _conflicts(config: TrainConfig, model: VisionLLM, shared: Sequence[Tensor], samples: Sequence[Sample],
               styles: Sequence[Style], owners: Sequence[str]) -> dict[str, float]:  # fmt: skip
    """How the data sets of a step pull at what they share; of this process's samples, without a trace in the model."""
    groups: dict[str, list[int]] = {}
    for place, owner in enumerate(owners):
        groups.setdefault(owner, []).append(place)

    def loss_of(places: list[int]) -> Tensor:
        batch = model.processor.encode([samples[i] for i in places], [styles[i] for i in places])
        batch = batch.to(model.mllm.net.device)
        return weigh(model(batch), model.counts(batch), weights_of(config, model), {})

    before = {name: value.clone() for name, value in model.named_buffers()}
    report = conflicts(groups, shared, loss_of)
    for name, value in model.named_buffers():
        value.copy_(before[name])
    return report


def style_at(run: RunConfig, position: int) -> Style:
    """Wording and layout of the sample at a position of the plan."""
    rng = item_rng(run.seed, position, _STYLE)
    return Style(rng=rng, tree=bool(rng.random() < run.tree))


def build_model(config: ModelConfig) -> VisionLLM:
    """A model from scratch, or from a checkpoint with overrides of its settings.

    Raises:
        ConfigError: neither a checkpoint nor what a model from scratch needs is given.
    """
    if config.start is not None:
        if config.tokenizer is not None:
            raise ConfigError("model.tokenizer: start brings its own; leave this key out")
        model = _pretrained(config.start, fresh=config.fresh, decoders=config.decoders, mllm=config.mllm,
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


def _pretrained(start: str, **changes: Any) -> VisionLLM:
    return VisionLLM.from_pretrained(None if start == "embedded" else start, **changes)


def make_loader(config: TrainConfig, rank: int = 0, world_size: int = 1) -> Loader:
    """The plan of a run and what reads it."""
    run = config.train
    return Loader(
        [source.open(run.data_root) for source in config.data],
        [source.weight for source in config.data],
        batch_size=run.batch_size, seed=run.seed, augment=config.augment, rank=rank, world_size=world_size,
        max_side=run.max_side, cache_bytes=run.cache_bytes,
    )  # fmt: skip


def describe(config: TrainConfig) -> str:
    """The plan of a run before it costs anything: shares, epochs, parameters."""
    model, loader, run = build_model(config.model), make_loader(config), config.train
    total = sum(source.weight for source in config.data)
    seen = run.steps * run.batch_size
    lines = [f"{run.steps:,} steps of {run.batch_size} samples = {seen:,} samples -> {run.out}", ""]
    for source, dataset in zip(config.data, loader.datasets, strict=True):
        share = source.weight / total
        lines.append(
            f"{dataset.key:28} {len(dataset):>10,} samples  {share:6.1%}  {share * seen / len(dataset):8.2f} epochs"
        )
        lines.append(f"    {dataset.report()}")
    lines.append("")
    for name, part in [("mllm", model.mllm), ("link_queries", model.link_queries), *model.decoders.items()]:
        count = sum(p.numel() for p in part.parameters())
        lines.append(f"{name:28} {count / 1e6:10.2f} M parameters")
    return "\n".join([*lines, f"plan digest {loader.plan.digest(min(seen, 10_000))}"])


@dataclass
class Clock:
    """Seconds spent by stage since the last report."""

    def __post_init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.steps, self.began = 0, time.perf_counter()

    @contextmanager
    def __call__(self, stage: str) -> Any:
        started = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - started
        self.steps += stage == "update"

    def report(self, batch_size: int) -> dict[str, float]:
        """Samples a second, and milliseconds a step of each stage."""
        steps, elapsed = max(1, self.steps), time.perf_counter() - self.began
        values = {"samples/s": steps * batch_size / elapsed}
        values |= {f"ms/{stage}": 1000 * seconds / steps for stage, seconds in self.seconds.items()}
        self.__post_init__()
        return values


def _split(samples: Sequence[Sample], styles: Sequence[Style], parts: int, picture: int
           ) -> list[tuple[list[Sample], list[Style]]]:  # fmt: skip
    """A step in ``parts`` pieces of like length, cut where the least padding follows.

    Args:
        picture: positions of a picture.
    """
    order = sorted(range(len(samples)), key=lambda i: _length(samples[i], picture))
    lengths = [_length(samples[i], picture) for i in order]
    count = len(order)
    # best[k][n]: padded size of the first n in k pieces, and where the last piece starts.
    best: list[list[tuple[float, int]]] = [[(0.0, 0)] + [(math.inf, 0)] * count]
    for _ in range(min(parts, count)):
        row = [(math.inf, 0)]
        for end in range(1, count + 1):
            row.append(min((best[-1][start][0] + (end - start) * lengths[end - 1], start) for start in range(end)))
        best.append(row)
    cuts = [count]
    for row in reversed(best[1:]):
        cuts.insert(0, row[cuts[0]][1])
    chunks = [order[a:b] for a, b in pairwise(cuts)]
    return [([samples[i] for i in chunk], [styles[i] for i in chunk]) for chunk in chunks]


def _length(sample: Sample, picture: int) -> int:
    """About how many positions a sample takes: each phrase stands in the question and in the reply."""
    listed = sum(len(phrase) + 4 for turn in sample.turns for phrase in turn.phrases)
    said = sum(15 + len((turn.question or "") + (turn.words or "")) // 2 for turn in sample.turns)
    found = sum(30 for turn in sample.turns if turn.then is not None)
    return listed + said + found + (picture + 6) * len(sample.pictures)


def _model_file(path: Path) -> dict[str, Any]:
    values = read_yaml(path)
    if isinstance(values, dict) and values.get("tokenizer"):
        values = {**values, "tokenizer": str(path.parent / values["tokenizer"])}
    return values


def _name(step: int) -> str:
    return f"step-{step:07d}"


def _save(
    folder: Path, step: int, model: VisionLLM, optimizer: Any, average: Average | None, loader: Loader, keep: int
) -> None:
    """Write a checkpoint aside and rename it: a folder of the final name is complete."""
    final, aside = folder / _name(step), folder / f".{_name(step)}.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    raw = model.state_dict()
    if average is not None:
        save_file({name: value.clone() for name, value in raw.items()}, aside / "raw.safetensors")
        model.load_state_dict(average.state)
        model.save_pretrained(aside / "model")
        model.load_state_dict(load_file(aside / "raw.safetensors"))
    else:
        model.save_pretrained(aside / "model")
    save_file(memory_of(model, optimizer), aside / "optimizer.safetensors")
    state = {"step": step, "plan": loader.plan.digest(256)}
    (aside / "state.json").write_text(json.dumps(state), encoding="utf-8")
    shutil.rmtree(final, ignore_errors=True)
    os.replace(aside, final)
    for old in sorted(folder.glob("step-*"))[:-keep]:
        shutil.rmtree(old)


def _resume(folder: Path, model: VisionLLM, optimizer: Any, average: Average | None, loader: Loader) -> int:
    """Fill everything from the newest checkpoint and return its step; 0 where there is none.

    Raises:
        CheckpointError: the data or the mixture changed since.
    """
    found = sorted(folder.glob("step-*"))
    if not found:
        return 0
    last = found[-1]
    state = json.loads((last / "state.json").read_text(encoding="utf-8"))
    if state["plan"] != loader.plan.digest(256):
        raise CheckpointError(f"{last}: was trained on another mixture, seed or data; start anew or restore them")
    if average is not None:
        load_weights(model, last / "model")
        average.load(model.state_dict())
        model.load_state_dict(load_file(last / "raw.safetensors"))
    else:
        load_weights(model, last / "model")
    remember(model, optimizer, load_file(last / "optimizer.safetensors"))
    return int(state["step"])
