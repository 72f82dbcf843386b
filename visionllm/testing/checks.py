"""What a decoder owes, a check each. A check that fails says in a line what is wrong and where to look."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from visionllm.core.answer import RESULT_TYPES
from visionllm.core.config import validate
from visionllm.core.errors import ConfigError, VisionLLMError
from visionllm.core.images import Images
from visionllm.core.sample import Sample, Turn
from visionllm.core.task import TASKS
from visionllm.decoders import Decoder
from visionllm.metrics import METRICS
from visionllm.model import VisionLLM
from visionllm.routing.render import render_question
from visionllm.testing.bench import Bench, Stage, numbers_of, roots, rows_of_roots, same
from visionllm.testing.small import noise

MANY = 80


class CheckError(AssertionError):
    """A decoder does not do what it owes."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing owed.

    Args:
        name: for tables and test ids.
        what: in a few words.
        run: raises ``CheckError`` where it is not so; may return a remark.
    """

    name: str
    what: str
    run: Callable[[Bench], str | None]


CHECKS: dict[str, Check] = {}


def _check(what: str) -> Callable[[Callable[[Bench], str | None]], Callable[[Bench], str | None]]:
    def add(run: Callable[[Bench], str | None]) -> Callable[[Bench], str | None]:
        name = run.__name__.strip("_").replace("_", "-")
        CHECKS[name] = Check(name=name, what=what, run=run)
        return run

    return add


def _owed(condition: Any, otherwise: str) -> None:
    if not condition:
        raise CheckError(otherwise)


# --- what it says of itself -------------------------------------------------------------------------------------------


@_check("name, tasks, tokens, wordings, result and metric are known")
def _registration(bench: Bench) -> None:
    cls = bench.cls
    _owed(cls.name == bench.name, f"its class says name {cls.name!r}; register it once")
    _owed(cls.tasks, "it has no tasks; set tasks to a tuple of registered tasks")
    texts: dict[str, str] = {}
    for other in TASKS:
        for token in TASKS[other].tokens:
            _owed(
                texts.get(token.text, other) == other, f"token {token.text} is of {texts.get(token.text)} and {other}"
            )
            texts[token.text] = other
    for task in cls.tasks:
        _owed(task.name in TASKS, f"task {task.name!r} is not registered; use register_task")
        _owed(task.decoder == bench.name, f"task {task.name!r} names decoder {task.decoder!r}")
        _owed(task.tokens, f"task {task.name!r} has no token")
        _owed(task.result in RESULT_TYPES, f"task {task.name!r}: no result type {task.result!r} is registered")
        _owed(task.metric in METRICS, f"task {task.name!r}: no metric {task.metric!r} is registered")
        turn = Turn(task=task.name, phrases=("car",), parts=(("nose",),) if task.parts_token else ())
        try:
            words = render_question(turn)
        except VisionLLMError as error:
            raise CheckError(f"task {task.name!r}: its wordings: {error}") from None
        _owed("car" in words, f"task {task.name!r}: its first wording leaves out the phrase: {words!r}")


@_check("a wrong key of Config or Options is one line")
def _config_errors(bench: Bench) -> None:
    for kind, keys in (("Config", bench.case.config), ("Options", bench.case.options)):
        try:
            validate(getattr(bench.cls, kind), {**keys, "no_such_key": 1}, source=kind)
        except ConfigError as error:
            _owed("no_such_key" in str(error) and "\n" not in str(error), f"{kind}: {error}")
        else:
            raise CheckError(f"{kind} takes no_such_key; let it derive from visionllm.core.config.Config")


# --- learning ---------------------------------------------------------------------------------------------------------


def _learning(bench: Bench, samples: list[Sample] | None = None) -> Stage:
    made = bench.stage(bench.crowd() if samples is None else samples)
    made.decoder.train()
    return made


def _total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack([value.float() for value in losses.values()]).sum()


@_check("losses are finite sums, and each has a divisor and a weight")
def _losses(bench: Bench) -> None:
    made = _learning(bench)
    losses, counts = made.loss(), made.decoder.counts(made.links, made.ctx)
    weights = {name for task in made.decoder.tasks for name in task.loss_weights}
    _owed(losses.keys() == counts.keys() == weights,
          f"losses {sorted(losses)}, counts {sorted(counts)} and loss_weights {sorted(weights)} differ")  # fmt: skip
    for name, value in losses.items():
        _owed(value.shape == (), f"loss {name} has shape {tuple(value.shape)}; it is one sum")
        _owed(torch.isfinite(value), f"loss {name} is {float(value.detach())}")
        _owed(math.isfinite(counts[name]) and counts[name] >= 0, f"counts {name} is {counts[name]}")


@_check("the gradient reaches every link query")
def _gradient_to_links(bench: Bench) -> None:
    made = _learning(bench)
    total = _total(made.loss())
    _owed(total.requires_grad, "the losses have no gradient; are the links detached?")
    total.backward()
    grad = made.links.states.grad
    _owed(grad is not None, "no gradient reaches the links; are they detached?")
    assert grad is not None
    _owed(torch.isfinite(grad).all(), "the gradient of the links is not finite")
    silent = ~(grad.abs().amax(1) > 0)[rows_of_roots(made.links)]
    _owed(not silent.any(), f"{int(silent.sum())} of {len(silent)} link queries learn nothing")


@_check("every parameter learns")
def _gradient_to_parameters(bench: Bench) -> None:
    made = _learning(bench)
    _total(made.loss()).backward()
    missed = [name for name, p in made.decoder.named_parameters() if p.requires_grad and p.grad is None]
    _owed(not missed, f"no gradient reaches {_few(missed)}; use it, or let it stand still (requires_grad_(False))")
    broken = [n for n, p in made.decoder.named_parameters() if p.grad is not None and not torch.isfinite(p.grad).all()]
    _owed(not broken, f"the gradient of {_few(broken)} is not finite")


@_check("the gradient reaches link queries and language model")
def _gradient_to_model(bench: Bench) -> None:
    model = bench.model().train()
    sums = model(model.processor.encode([bench.case.sample(("car", "dog"))])).sums
    own = {name: value for name, value in sums.items() if name.startswith(f"{bench.name}/")}
    _owed(own, "its losses are not among the model's; does the sample name its task?")
    _total(own).backward()
    table = dict(model.named_parameters())
    tokens = [token.text for task in model.tasks if task.decoder == bench.name for token in task.tokens]
    reached = [text for text in tokens if _moved(table[f"link_queries.tables.{text}"])]
    _owed(reached, f"no gradient reaches the link queries of {_few(tokens)}")
    layer = next(name for name in table if "language_model.layers.0" in name and name.endswith("up_proj.weight"))
    _owed(_moved(table[layer]), "no gradient reaches the first layer of the language model")


@_check("losses of a batch are the sum of its samples")
def _losses_add_up(bench: Bench) -> None:
    samples = bench.crowd()
    made = bench.stage(samples)
    with torch.no_grad():
        whole = made.loss()
        parts = [bench.stage([sample], made.decoder) for sample in samples]
        alone = [part.loss() for part in parts]
    for name, value in whole.items():
        total = sum(float(part[name]) for part in alone)
        _owed(math.isclose(float(value), total, rel_tol=1e-4, abs_tol=1e-3),
              f"loss {name} of a batch is {float(value):.5g}, of its samples {total:.5g}; does a sample read another, "
              "or is it a mean?")  # fmt: skip
    for name, count in made.decoder.counts(made.links, made.ctx).items():
        total = sum(part.decoder.counts(part.links, part.ctx)[name] for part in parts)
        _owed(math.isclose(count, total, rel_tol=1e-6), f"counts {name} of a batch is {count}, of its samples {total}")


@_check("a batch may hold other tasks")
def _mixed_batch(bench: Bench) -> None:
    """Beside plain words and boxes, losses are what they are alone."""
    model = bench.whole
    own = bench.case.sample(("car",))
    plain = Sample(pictures=(noise(),), turns=(Turn(question="what is this?", reply="noise"),))
    with torch.no_grad():
        alone = model(model.processor.encode([own])).sums
        mixed = model(model.processor.encode([plain, own])).sums
    for name in (key for key in alone if key.startswith(f"{bench.name}/")):
        _owed(math.isclose(float(alone[name]), float(mixed[name]), rel_tol=1e-3, abs_tol=1e-3),
              f"loss {name} is {float(alone[name]):.5g} alone and {float(mixed[name]):.5g} beside plain words; "
              "links say which sample they are of (meta.sample)")  # fmt: skip


# --- answering --------------------------------------------------------------------------------------------------------


@_check("results of a batch are those of its samples alone")
def _batched_is_single(bench: Bench) -> None:
    samples = bench.crowd()
    made = bench.stage(samples)
    together = made.predict()
    places = roots(made.links)
    _owed(len(together) == len(places), f"{len(together)} results for {len(places)} links; give one each")
    for number, sample in enumerate(samples):
        alone = bench.stage([sample], made.decoder).predict()
        own = [result for result, i in zip(together, places, strict=True) if made.links.meta[i].sample == number]
        for place, (one, other) in enumerate(zip(alone, own, strict=True)):
            _owed(same(one, other),
                  f"sample {number}, phrase {place}: alone {_short(one)}, in a batch {_short(other)}; does it read "
                  "another sample?")  # fmt: skip
            _owed(np.allclose(one.scores, other.scores, atol=1e-4), f"sample {number}, phrase {place}: scores differ")


@_check("results come in the order of the links")
def _order(bench: Bench) -> None:
    made = bench.stage(bench.crowd())
    places = list(range(len(made.links)))
    # Turned by one: the other way round a list that is turned round looks right.
    turned = made.links.select([*places[1:], places[0]])
    there, moved = made.predict(), made.decoder.predict(turned, made.ctx, made.options)
    first = int(made.links.meta[0].parent < 0)
    for place, (one, other) in enumerate(zip([*there[first:], *there[:first]], moved, strict=True)):
        _owed(
            same(one, other), f"link {place}: {_short(one)}, and {_short(other)} where the links come in another order"
        )


@_check("the answer depends on the link")
def _links_matter(bench: Bench) -> None:
    """With the links of two phrases changed, what is told of each changes."""
    made = bench.stage([bench.case.sample(("abc", "xyz"))])
    stirred = made.links.states.detach() + torch.randn(made.links.states.shape, generator=torch.Generator())
    other = replace(made.links, states=stirred)
    before, after = made.predict(), made.decoder.predict(other, made.ctx, made.options)
    still = [i for i, (one, two) in enumerate(zip(before, after, strict=True)) if _far(one, two) == 0]
    _owed(not still, f"phrase {still[0] if still else 0} is answered alike whatever its link says")
    with torch.no_grad():
        one, two = (made.decoder.loss(links, made.ctx) for links in (made.links, other))
    _owed(any(float(one[name]) != float(two[name]) for name in one), "the losses are the same whatever the links say")


@_check("results are of the original picture")
def _original_pixels(bench: Bench) -> str | None:
    sizes = ((96, 64), (192, 128))
    reach: list[float] = []
    for size in sizes:
        made = bench.stage([bench.case.sample(("abc",), size=size)])
        picture = made.ctx.batch.samples[0].pictures[0] if made.ctx.batch.samples[0].pictures else None
        (result,) = made.predict()
        drawn = result.draw(picture)
        # What marks a picture keeps its size; pictures that were made stand beside it.
        _owed(picture is None or drawn.size == picture.size or isinstance(result, Images),
              f"drawn on a picture of {size} it is {drawn.size}; results are of the original picture")  # fmt: skip
        scores = result.scores
        _owed(scores.dtype == np.float32 and bool(((scores >= 0) & (scores <= 1)).all()),
              "scores must be float32 between 0 and 1")  # fmt: skip
        _owed(isinstance(result.statements(), list), "statements() must be a list of lines")
        boxes = getattr(result, "boxes_xyxy", ())
        reach += [float(np.abs(boxes).max())] if len(boxes) else []
    if len(reach) < len(sizes):
        return "it gives no boxes"
    _owed(
        reach[0] > 1.5, f"no box reaches beyond {reach[0]:.2f} pixels in a picture of {sizes[0]}; are they normalised?"
    )
    _owed(1.3 < reach[1] / max(reach[0], 1e-6) < 3,
          f"boxes reach {reach[0]:.1f} in a picture of {sizes[0]} and {reach[1]:.1f} in one of {sizes[1]}; they are "
          "in pixels of the picture")  # fmt: skip
    return None


@_check("nothing asked is nothing answered")
def _no_links(bench: Bench) -> None:
    made = bench.stage(bench.crowd())
    none = made.links.select([])
    _owed(made.decoder.predict(none, made.ctx, made.options) == [], "without links predict must give []")
    losses = made.decoder.loss(none, made.ctx)
    _owed(all(float(value.detach()) == 0 for value in losses.values()), "without links every loss must be 0")
    _owed(not any(made.decoder.counts(none, made.ctx).values()), "without links every count must be 0")
    empty = RESULT_TYPES[bench.cls.tasks[0].result].merge([])
    _owed(len(empty.scores) == 0, "merge([]) must be the empty result")


@_check("nothing there is learned from, too")
def _empty_targets(bench: Bench) -> None:
    sample = bench.case.sample
    made = _learning(bench, [sample(("a", "b"), empty=True), sample(("c",), seed=1, empty=True)])
    losses = made.loss()
    _owed(all(torch.isfinite(value) for value in losses.values()), "a loss is not finite where nothing is there")
    _total(losses).backward()
    grad = made.links.states.grad
    _owed(grad is None or torch.isfinite(grad).all(), "the gradient is not finite where nothing is there")


@_check(f"one phrase, and {MANY}")
def _one_and_many(bench: Bench) -> None:
    for count in (1, MANY):
        made = _learning(bench, [bench.case.sample(tuple(f"thing {i}" for i in range(count)), seed=2)])
        losses = made.loss()
        _owed(all(torch.isfinite(value) for value in losses.values()), f"a loss is not finite with {count} phrases")
        made.decoder.eval()
        found = len(made.predict())
        _owed(found == count, f"{found} results for {count} phrases")


@_check("a call leaves nothing behind")
def _no_state(bench: Bench) -> None:
    samples = bench.crowd()
    made = bench.stage(samples[:1])
    before = {name: value.clone() for name, value in made.decoder.state_dict().items()}
    first = made.predict()
    bench.stage(samples[1:], made.decoder).predict()
    for place, (one, other) in enumerate(zip(first, made.predict(), strict=True)):
        _owed(same(one, other), f"phrase {place}: {_short(one)}, after another call {_short(other)}; keep nothing")
    changed = [name for name, value in made.decoder.state_dict().items() if not torch.equal(value, before[name])]
    _owed(not changed, f"predict changed {_few(changed)}")
    loud = made.decoder.train().predict(made.links, made.ctx, made.options)
    _owed(same(first[0], loud[0]), "in training mode predict draws noise; it must not")
    value = numbers_of(first[0])
    _owed(bool(np.isfinite(value).all()), "a result is not finite")


# --- on disk and on devices -------------------------------------------------------------------------------------------


@_check("saved and loaded it is the same")
def _save_and_load(bench: Bench) -> None:
    model = bench.whole
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        again = VisionLLM.from_pretrained(folder)
        _owed(not list(Path(folder).glob("*.bin")), "a checkpoint is safetensors and JSON alone")
    _owed(again.fingerprint == model.fingerprint, "loaded weights differ from those that were saved")
    stage = bench.stage([bench.case.sample(("abc",))], cast(Decoder, model.decoders[bench.name]))
    loaded = replace(stage, decoder=cast(Decoder, again.decoders[bench.name]))
    _owed(same(stage.predict()[0], loaded.predict()[0]), "loaded it answers otherwise; what is not in its state_dict?")


@_check("it runs in bf16")
def _bf16(bench: Bench) -> None:
    made = _learning(bench)
    with torch.autocast("cpu", torch.bfloat16):
        losses = made.loss()
    _owed(all(torch.isfinite(value) for value in losses.values()), "a loss is not finite under bf16 autocast")
    _total(losses).backward()
    half = bench.stage(bench.crowd()[:1])
    half.links = replace(half.links, states=half.links.states.detach().bfloat16())
    try:
        found = half.predict()
    except RuntimeError as error:
        raise CheckError(f"links in bf16: {str(error).splitlines()[0]}; cast them to the type of its weights") from None
    _owed(all(np.isfinite(numbers_of(one)).all() for one in found), "with links in bf16 a result is not finite")


@_check("all of it moves to a device")
def _device(bench: Bench) -> str | None:
    decoder = bench.built()
    lost = [f"{name or type(module).__name__}.{key}" for name, module in decoder.named_modules()
            for key, value in vars(module).items() if isinstance(value, Tensor)]  # fmt: skip
    _owed(not lost, f"{_few(lost)} is a tensor that stays where it is; make it a buffer")
    if not torch.cuda.is_available():
        return "no GPU here"
    made = bench.stage(bench.crowd(), decoder.cuda())
    made.ctx = replace(made.ctx, batch=made.ctx.batch.to("cuda"))
    made.links = replace(made.links, states=made.links.states.detach().cuda())
    on_cpu = bench.stage(bench.crowd(), bench.built())
    for one, other in zip(made.predict(), on_cpu.predict(), strict=True):
        _owed(_far(one, other) < 0.05, "on a GPU it answers otherwise")
    return None


@_check("words and other decoders' results stay as they were")
def _neighbours(bench: Bench) -> None:
    plain, model = bench.model(alone=True), bench.whole
    if set(plain.decoders) == set(model.decoders):
        return  # it is the neighbour
    picture, task = noise(seed=3), plain.tasks[0]
    names = [own.name for own in plain.tasks]
    one, other = (each.ask(picture, "detect the cars", max_new_tokens=12, allow=names) for each in (plain, model))
    _owed(one.text == other.text, f"with it loaded the reply is {other.text!r}, without it {one.text!r}")
    found = [each.known(task.name, picture, ["car", "dog"]).results[task.name] for each in (plain, model)]
    _owed(_far(*found) < 1e-3, f"with it loaded {task.result} are others")


@_check("a process without its links can wait for the others")
def _idle(bench: Bench) -> None:
    decoder = bench.built().train()
    value = decoder.idle()
    _owed(value.shape == () and math.isfinite(float(value.detach())), "idle() must be one finite number")
    (0.0 * value).backward()
    missed = [name for name, p in decoder.named_parameters() if p.requires_grad and p.grad is None]
    _owed(not missed, f"idle() does not reach {_few(missed)}")


def _moved(parameter: Tensor) -> bool:
    return parameter.grad is not None and bool((parameter.grad != 0).any())


def _far(one: Any, other: Any) -> float:
    """Largest difference of two results' numbers; infinite where there are not as many."""
    a, b = numbers_of(one), numbers_of(other)
    return float(np.abs(a - b).max(initial=0.0)) if a.shape == b.shape else math.inf


def _short(result: Any) -> str:
    text = np.array2string(numbers_of(result)[:6], precision=3, separator=", ")
    return " ".join(text.split())


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
