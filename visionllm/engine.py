"""Training: the loop on one screen, what it needs below it."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from visionllm.checkpoint import load_weights
from visionllm.conflict import conflicts
from visionllm.core.errors import CheckpointError, ConfigError, DatasetError
from visionllm.core.files import make_folder
from visionllm.core.sample import Sample
from visionllm.datasets.loader import Loader
from visionllm.distributed import agree_on_idle, global_counts, leave_at_exit, summed
from visionllm.logs import RunLog
from visionllm.model import Losses, VisionLLM
from visionllm.optim import Average, make_optimizer, memory_of, remember, set_rate
from visionllm.routing.render import Style
from visionllm.runs import (
    TrainConfig,
    build_model,
    check_tasks,
    checkpoints,
    make_loader,
    pretrained,
    style_at,
    weights_of,
)


def train(config: TrainConfig, *, resume: bool = False) -> Path:
    """Run a training and return the folder of the last checkpoint's model.

    What a step trains on, and the noise it draws, are functions of the seed and the step: a resumed run goes on as if
    it had never stopped.
    """
    from accelerate import Accelerator, DistributedDataParallelKwargs

    run = config.train
    folder = Path(run.out)
    held = checkpoints(folder)
    if held and not resume:
        # Its checkpoints would be taken for this run's, and the oldest deleted.
        raise ConfigError(f"train.out: {held[-1]} is another run's; go on with it (--resume), or name another folder")
    make_folder(folder, source="train.out")
    accelerator = Accelerator(
        mixed_precision=run.precision, kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        # Told nothing, accelerate lets each process of a machine without a GPU train a model of its own.
        cpu=not torch.accelerator.is_available(),
    )  # fmt: skip
    if accelerator.num_processes > 1:
        leave_at_exit()
    torch.manual_seed(run.seed)
    # Before anything copies it: the running average lives beside the weights.
    model = build_model(config.model).train().to(accelerator.device)
    if run.hold:
        # Before a checkpoint is gone on from: held is what was there at the start.
        model.hold(run.hold, None if run.hold_to is None else pretrained(run.hold_to))
    weights = weights_of(config, model)
    silent = model.silent(weights)
    optimizer = make_optimizer(model, config.optim)
    loader = make_loader(config, accelerator.process_index, accelerator.num_processes)
    check_tasks(loader, model)
    for told in filter(None, (dataset.report() for dataset in loader.datasets)):
        accelerator.print(told, file=sys.stderr)
    average = Average(model, config.optim.ema) if config.optim.ema else None
    start = _resume(held[-1], run.steps, model, optimizer, average, loader) if held else 0
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    if run.attention is not None:
        model.attend(run.attention)
    log = RunLog(folder, steps=run.steps, start=start, enabled=accelerator.is_main_process)
    clock = Clock()
    sights = any(weights[name] > 0 for name in ("sight", "region", "gaze"))
    plain = weights["meant"] > 0
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
            micro = [model.processor.encode(s, w, multiple=32, sights=sights, plain=plain) for s, w in parts]
            micro = [batch.to(accelerator.device) for batch in micro]
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
    del wrapped
    accelerator.free_memory()
    if accelerator.is_main_process:
        print(loader.report, *loader.report.reasons(), sep="\n")
    return folder / _name(run.steps) / "model"


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
    state = {"step": step, "plan": loader.plan.state(), "batch_size": loader.batch_size}
    (aside / "state.json").write_text(json.dumps(state), encoding="utf-8")
    shutil.rmtree(final, ignore_errors=True)
    os.replace(aside, final)
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old)


def _resume(
    last: Path, steps: int, model: VisionLLM, optimizer: Any, average: Average | None, loader: Loader
) -> int:  # fmt: skip
    """Fill everything from the checkpoint ``last`` and return its step.

    Raises:
        CheckpointError: it would not be the same run: data, mixture, seed, samples a step or the running average are
            others now, or it has done more than ``steps``.
    """
    state = json.loads((last / "state.json").read_text(encoding="utf-8"))
    _check_same(last, state, average, loader)
    if state["step"] > steps:
        raise CheckpointError(f"{last}: is beyond train.steps={steps}; ask for more, or use its model as it is")
    if average is not None:
        load_weights(model, last / "model")
        average.load(model.state_dict())
        model.load_state_dict(load_file(last / "raw.safetensors"))
    else:
        load_weights(model, last / "model")
    remember(model, optimizer, load_file(last / "optimizer.safetensors"))
    return int(state["step"])


def _check_same(last: Path, state: dict[str, Any], average: Average | None, loader: Loader) -> None:
    """Whether what is left of a run is what its checkpoint has begun; see ``_resume``."""
    cure = "restore it, or start a new run from the checkpoint's model (model.start)"
    plan = state["plan"]
    if isinstance(plan, str):  # of an older version, which noted the order of the first samples alone
        if plan != loader.plan.digest(256):
            raise CheckpointError(f"{last}: was trained on another mixture, seed or data; start anew or restore them")
    else:
        try:
            loader.plan.check_state(plan)
        except DatasetError as error:
            raise CheckpointError(f"{last}: {error}") from None
    was = state.get("batch_size", loader.batch_size)
    if was != loader.batch_size:
        raise CheckpointError(
            f"{last}: train.batch_size was {was} and is {loader.batch_size} now, which repeats or leaves out samples; "
            + cure
        )
    averaged = (last / "raw.safetensors").is_file()
    if averaged != (average is not None):
        raise CheckpointError(f"{last}: optim.ema was {'on' if averaged else 'off'} and is not so now; {cure}")
