"""The model: a multimodal LLM, link queries, and decoders under one roof.

``forward(batch)`` gives losses, ``ask`` an answer; calling the model does whichever fits its arguments.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from visionllm.answering import Answering
from visionllm.checkpoint import (
    as_the_mean,
    by_turns,
    load_weights,
    locate,
    provider_of,
    read_config,
    save_weights,
    take_weights,
)
from visionllm.config import FORMAT_VERSION, VisionLLMConfig
from visionllm.core.batch import Batch
from visionllm.core.config import validate
from visionllm.core.errors import CheckpointError, ConfigError, unknown_name
from visionllm.core.files import make_folder
from visionllm.core.superlink import SuperLinks
from visionllm.core.task import Task
from visionllm.decoders import DECODERS, Context, Decoder
from visionllm.losses import ended, numbered, reply_losses, sight_loss, spelling_loss
from visionllm.mllm.attention import watching
from visionllm.mllm.internvl import InternVL, internvl_config
from visionllm.mllm.regions import RegionEncoder
from visionllm.mllm.vision import count_tiles, make_tiles
from visionllm.processor import Processor, Tiling
from visionllm.routing.former import Former, Look
from visionllm.routing.gazes import gaze_loss, layers_of
from visionllm.routing.queries import LinkQueries, spelling
from visionllm.routing.readout import Text, read_out, run_text
from visionllm.routing.vocabulary import END, Vocabulary


@dataclass(kw_only=True, slots=True, frozen=True, eq=False)
class Losses:
    """Un-weighted sums by name (``lm``, ``objects/class``, ...) and their default weights."""

    sums: dict[str, Tensor]
    weights: dict[str, float]


class VisionLLM(Answering, PreTrainedModel):
    """A generalist vision model.

    Example:
        >>> model = VisionLLM.from_pretrained()
        >>> answer = model("street.jpg", "detect all cars")
        >>> answer.detections.boxes_xyxy  # pixels of the picture

    Args:
        config: what it is made of.
        vocabulary: its tokenizer; the routing tokens of all its decoders' tasks are added where missing.
    """

    config_class = VisionLLMConfig
    base_model_prefix = ""
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(
        self, config: VisionLLMConfig, vocabulary: Vocabulary | Callable[[tuple[Task, ...]], Vocabulary]
    ) -> None:
        super().__init__(config)
        mllm = config.mllm
        if mllm is None:
            raise ConfigError("mllm: missing; give the keys of an InternVL configuration")
        self.mllm = InternVL(mllm)
        settings = config.decoder_configs()
        self.decoders = nn.ModuleDict(
            {name: DECODERS[name].from_config(value, self.mllm.hidden_size) for name, value in settings.items()}
        )
        self.tasks: tuple[Task, ...] = tuple(task for _, decoder in self._decoders() for task in decoder.tasks)
        check_served(self.tasks)
        self.link_queries = LinkQueries((t for task in self.tasks for t in task.tokens), self.mllm.hidden_size)
        self.vocabulary = vocabulary if isinstance(vocabulary, Vocabulary) else vocabulary(self.tasks)
        self.vocabulary.lower_capitals = config.lower_capitals
        self.mllm.resize_vocabulary(len(self.vocabulary))
        self.mllm.config.image_token_id = mllm["image_token_id"] = self.vocabulary.image
        regions = config.region_config()
        self.region_encoder = None if regions is None else RegionEncoder(
            layers=regions.layers, channels=regions.channels, vision_width=self.mllm.vision_width,
            width=self.mllm.hidden_size,
        )  # fmt: skip
        self._no_split_modules = self.mllm.no_split_modules()
        self.processor = Processor(
            self.vocabulary,
            Tiling(
                count=partial(count_tiles, tile=self.mllm.tile_size, max_tiles=config.max_tiles),
                make=partial(make_tiles, tile=self.mllm.tile_size, max_tiles=config.max_tiles),
                tokens_per_tile=self.mllm.tokens_per_tile,
            ),
            {f"{name}/{role}": spec for name, decoder in self._decoders() for role, spec in decoder.pixels.items()},
            self.mllm.context_length,
            regions=regions is not None,
        )
        self._fingerprints: dict[str, str] = {}  # settings -> fingerprint of these weights under them
        # No module: what is held to is no part of the model, and is not saved with it.
        self._former: Former | None = None

    # -- on disk ---------------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, name: str | Path | None = None, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32,
        fresh: Sequence[str] = (), decoders: Mapping[str, Mapping[str, Any]] | None = None,
        mllm: Mapping[str, Any] | None = None, regions: Mapping[str, Any] | None = None,
        parts: Mapping[str, str] | None = None,
    ) -> VisionLLM:  # fmt: skip
        """Load a checkpoint: the embedded model (no name), a folder, or a hub id. Returned in evaluation mode.

        Modules are built by their own constructors and then filled, so non-persistent buffers are right and nothing is
        initialised behind a decoder's back; a missing or left-over weight is an error.

        Args:
            dtype: of the language model and what it reads. Decoders stay in fp32: three digits are too few for places
                in a picture, and next to the language model they are small.
            fresh: prefixes of parameter names that keep their initial values, whatever the checkpoint holds there.
            decoders: settings over those of the checkpoint, nested keys too. A decoder or a part it lacks must stand in
                ``fresh``; its routing tokens then join the vocabulary, each with a row of weights of its own (see
                ``Token.like``). A table may have more rows than the checkpoint's (``Decoder.tables_that_grow``).
            mllm: keys over those of the checkpoint. More ``num_hidden_layers`` of ``text_config`` or ``vision_config``
                than it has: the new layers must stand in ``fresh`` and begin as identity (block expansion: Wu et al.
                2024, LLaMA Pro, section 3.2). Layers that ``regions`` counts from the end then mean others.
            regions: keys over those of the checkpoint; where it takes no regions, ``region_encoder`` must stand in
                ``fresh``.
            parts: prefix of parameter names -> checkpoint that they are taken from: parts that were trained apart.

        Raises:
            ConfigError: no parameter starts with one of ``fresh`` or ``parts``, or a decoder's settings are wrong.
            CheckpointError: it is not there, broken, of a newer format, or needs a plugin that is not installed.
        """
        device = _usable(device)
        folder = locate(name)
        values = read_config(folder)
        if decoders:
            values["decoders"] = _merged(values.get("decoders"), decoders, source=str(folder))
        held = values.get("mllm")
        if mllm and isinstance(held, dict):
            values["mllm"] = _over(held, mllm)
        if regions is not None:
            values["regions"] = {**(values.get("regions") or {}), **regions}
        config = VisionLLMConfig.from_dict(values)
        model = cls(config, partial(Vocabulary.load, folder))
        for prefix in fresh:
            if not any(key.startswith(prefix) for key in model.state_dict()):
                raise ConfigError(f"fresh: no parameter starts with {prefix!r}; one that does: decoders.")
        new = model.mllm.vocabulary_tables() if model.vocabulary.new and fresh else []
        grown = [(table, as_the_mean) for table in new]
        grown += [(table, by_turns) for name in decoders or () for table in model.decoders[name].tables_that_grow()]
        load_weights(model, folder, fresh, grown)
        if mllm and isinstance(held, dict):
            before = internvl_config(held)
            model.mllm.pass_through(before.text_config.num_hidden_layers, before.vision_config.num_hidden_layers)
        model._start_tokens(fresh, source=str(folder))
        take_weights(model, parts or {})
        model.to(device=device)
        for part in (model.mllm, model.link_queries, model.region_encoder):
            if part is not None:
                part.to(dtype=dtype)
        return model.eval()

    @torch.no_grad()
    def _start_tokens(self, fresh: Sequence[str], *, source: str) -> None:
        """Routing tokens that join a trained model begin as the tokens they are like.

        Raises:
            CheckpointError: the tokenizer lacks a token that nobody asked to start anew.
        """
        for text in self.vocabulary.new:
            if text not in self.vocabulary.tokens or not f"link_queries.tables.{text}".startswith(tuple(fresh)):
                raise CheckpointError(f"{source}: tokenizer.json lacks {text}; restore the file it was saved with")
            like = self.vocabulary.tokens[text][1].like
            if like in self.vocabulary.tokens and like not in self.vocabulary.new:
                self.link_queries.copy(like, text)
                for table in self.mllm.vocabulary_tables():
                    table[self.vocabulary.control(text)] = table[self.vocabulary.control(like)]

    def save_pretrained(self, save_directory: str | Path, *, dtype: torch.dtype | None = None, **_: Any) -> None:  # type: ignore[override]
        """Write config, weights (optionally in another ``dtype``) and vocabulary to a folder.

        Raises:
            VisionLLMError: the folder cannot be made.
        """
        folder = make_folder(save_directory, source="save_directory")
        self.config.format_version = FORMAT_VERSION
        self.config.providers = {name: provider_of(DECODERS[name].__module__) for name in self.decoders}
        self.config.decoders = {
            name: decoder.described(self.config.decoders[name]) for name, decoder in self._decoders()
        }
        self.config.architectures = [type(self).__name__]
        (folder / "config.json").write_text(self.config.to_json_string(use_diff=False), encoding="utf-8")
        save_weights(self, folder, dtype)
        self.vocabulary.save(folder)

    def train(self, mode: bool = True) -> VisionLLM:
        if mode:
            self._fingerprints.clear()
        elif not any(module.training for module in self.modules()):
            # Telling it to two thousand modules is a fortieth of a short answer, and every answer does so twice.
            return self
        return super().train(mode)

    def configure(self, decoder: str, **values: Any) -> None:
        """Change settings of a decoder that its weights do not depend on (a threshold, the size of its pictures).

        Raises:
            ConfigError: no such setting, or a value that does not fit.
        """
        old = self._decoder(decoder)
        merged = {**self.config.decoders[decoder], **values}
        settings = validate(DECODERS[decoder].Config, merged, source=f"decoders.{decoder}")
        fresh = DECODERS[decoder].from_config(settings, self.mllm.hidden_size)
        fresh.load_state_dict(old.state_dict())
        self.decoders[decoder] = fresh.to(self.mllm.net.device).train(old.training)
        self.config.decoders = {**self.config.decoders, decoder: merged}
        self.processor.pixels |= {f"{decoder}/{role}": spec for role, spec in fresh.pixels.items()}

    def without(self, *decoders: str) -> VisionLLM:
        """A copy that lacks some decoders, their tasks and their link queries. Their tokens stay in the vocabulary, and
        nothing may write them.

        Raises:
            UnknownNameError: there is no such decoder.
        """
        gone = {name: self._decoder(name) for name in decoders}
        config = deepcopy(self.config)
        config.decoders = {
            name: decoder.described(self.config.decoders[name])
            for name, decoder in self._decoders()
            if name not in gone
        }
        other = VisionLLM(config, self.vocabulary.of)
        kept = other.state_dict().keys()
        other.load_state_dict({name: value for name, value in self.state_dict().items() if name in kept})
        return other.to(self.mllm.net.device).train(self.training)

    def _decoder(self, name: str) -> Decoder:
        if name not in self.decoders:
            raise unknown_name("decoder", name, list(self.decoders))
        return dict(self._decoders())[name]

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: every module keeps the initialisation of its own constructor."""

    # -- training --------------------------------------------------------------------------------------------------

    def hold(self, decoders: Collection[str], former: VisionLLM | None = None) -> None:
        """From here on ``forward`` gives the loss ``held``: how far the links of some decoders are from what another
        model of the same vocabulary, or (None) this one as it is now, makes of the same text; and of a batch that says
        what phrases mean the loss ``meant``: how far theirs are from what it makes of these (``Former``).

        Raises:
            UnknownNameError: there is no such decoder.
        """
        tasks = [task.name for name in decoders for task in self._decoder(name).tasks]
        before = self if former is None else former.to(self.device)
        self._former = Former(before.mllm, before.link_queries, tasks)

    def attend(self, kind: str) -> None:
        """Choose how attention is computed everywhere: a value of ``train.attention``."""
        self.mllm.attend(kind)
        if self._former is not None:
            self._former.mllm.attend(kind)
        for _, decoder in self._decoders():
            decoder.attend(kind)

    def forward(self, batch: Batch, idle: Sequence[str] = (), silent: Collection[str] = ()) -> Losses:
        """Losses of a batch that was encoded with its replies.

        Args:
            idle: decoders that run on nothing, because another rank uses them in this step.
            silent: decoders that do not run, because nothing is learned from them (``silent``).
        """
        seen, text = self._see(batch), Text.of(batch)
        depth = self.mllm.depth
        with watching(layers_of(depth) if batch.gazes is not None else ()) as attention:
            out = run_text(self.mllm, text, seen.all, keep_cache=len(batch.links) > 0)
        sums = reply_losses(self.mllm, self.vocabulary, out.hidden_BTD, batch)
        if batch.gazes is not None and attention:
            sums["gaze"] = gaze_loss(batch.gazes, attention, depth)
        if batch.sights is not None and seen.tiles is not None and seen.slots is not None:
            lost = sight_loss(self.mllm, seen.slots, batch.sights)
            first = seen.tiles.shape[:2].numel()
            sums |= {"sight": lost[:first].sum(), "region": lost[first:].sum()}
        if len(batch.links):
            links = read_out(self.mllm, self.link_queries, text, batch.links, out.cache)
            sums["link"] = spelling_loss(self.mllm, self.vocabulary, links, batch)
            if self._former is not None:
                with torch.no_grad():
                    plain = None if batch.plain is None else Look(batch.plain, self._see(batch.plain).all)
                sums |= self._former.moved(links, Look(batch, seen.all), plain)
            taught = links.select(_with_targets(batch))
            ctx = Context(batch=batch, vision=seen.tiles)
            for name, decoder in self._decoders():
                part = taught.of_tasks([task.name for task in decoder.tasks])
                if len(part) and name not in silent:
                    sums |= {f"{name}/{key}": value for key, value in decoder.loss(part, ctx).items()}
        for name in idle:
            sums["lm"] = sums["lm"] + 0.0 * self.decoders[name].idle()
        return Losses(sums=sums, weights=self.loss_weights())

    def counts(self, batch: Batch) -> dict[str, float]:
        """The divisor of every loss ``forward`` gives for this batch; from targets alone, before any pass."""
        labels = batch.labels[:, 1:]
        wanted, said = labels != -100, batch.free[:, 1:]
        routes = (~said & ended(batch.labels, self.vocabulary)[:, 1:])[wanted]
        counts = {
            "lm": float((wanted & ~said).sum()), "end": float((labels == self.vocabulary.control(END)).sum()),
            "weakest": float(len(numbered(wanted)[routes].unique())), "words": float(len(numbered(said).unique())),
        }  # fmt: skip
        if len(batch.links):
            counts["link"] = float((spelling(batch.links, self.vocabulary) != -100).sum())
            if self._former is not None:
                for name, places in zip(("held", "meant"), self._former.places(batch), strict=True):
                    counts[name] = float(sum(batch.links.queries[place] for place in places))
        if batch.sights is not None:
            positions = 0 if batch.tiles is None else len(batch.tiles) * self.mllm.tokens_per_tile
            tiled = batch.sights.slot < positions
            counts |= {"sight": float(batch.sights.weight[tiled].sum()),
                       "region": float(batch.sights.weight[~tiled].sum())}  # fmt: skip
        if batch.gazes is not None:
            counts["gaze"] = float(len(batch.gazes.kind))
        layout = batch.links.select(_with_targets(batch))
        links = SuperLinks(states=torch.zeros(sum(layout.queries), 1), queries=layout.queries, meta=layout.meta)
        ctx = Context(batch=batch)
        for name, decoder in self._decoders():
            part = links.of_tasks([task.name for task in decoder.tasks])
            if len(part):
                counts |= {f"{name}/{key}": value for key, value in decoder.counts(part, ctx).items()}
        return counts

    def loss_weights(self) -> dict[str, float]:
        """Default weight of every loss by name."""
        off = dict.fromkeys(("weakest", "sight", "region", "gaze", "held", "meant"), 0.0)
        return {"lm": 1.0, "words": 1.0, "end": 0.1, "link": 0.5, **off} | {
            f"{task.decoder}/{key}": value for task in self.tasks for key, value in task.loss_weights.items()
        }

    def silent(self, weights: Mapping[str, float]) -> set[str]:
        """Names of the decoders none of whose losses has a weight."""
        heard = {name.partition("/")[0] for name, weight in weights.items() if weight}
        return set(self.decoders) - heard

    def used(self, batch: Batch) -> set[str]:
        """Names of the decoders that learn from this batch."""
        serves = {task.name: task.decoder for task in self.tasks}
        return {serves[batch.links.meta[i].task] for i in _with_targets(batch)}

    # -- use -------------------------------------------------------------------------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if (args and isinstance(args[0], Batch)) or isinstance(kwargs.get("batch"), Batch):
            return super().__call__(*args, **kwargs)
        return self.ask(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        for task in self.__dict__.get("tasks", ()):
            if task.verb == name:
                return partial(self.known, task.name)
        return super().__getattr__(name)

    @property
    def fingerprint(self) -> str:
        """Short hash of the weights and of the settings they answer under, the same on every machine; that of the
        weights is computed once after each training."""
        settings = {name: decoder.described(self.config.decoders[name]) for name, decoder in self._decoders()}
        shown: dict[str, Any] = {
            "decoders": settings, "quote": self.config.quote, "max_tiles": self.config.max_tiles
        }  # fmt: skip
        # Models from before there was such a setting keep theirs.
        shown |= {"lower_capitals": True} if self.config.lower_capitals else {}
        how = json.dumps(shown, sort_keys=True, default=str)
        if how not in self._fingerprints:
            digest = hashlib.sha256(how.encode())
            for name, value in sorted(self.state_dict().items()):
                digest.update(name.encode())
                digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
            self._fingerprints[how] = digest.hexdigest()[:12]
        return self._fingerprints[how]


def _merged(held: Any, given: Mapping[str, Mapping[str, Any]], *, source: str) -> dict[str, Any]:
    """Settings of a checkpoint's decoders with others over them.

    Raises:
        CheckpointError: the checkpoint's are no settings.
        UnknownNameError: there is no decoder of a given name.
    """
    if not isinstance(held, dict) or not all(isinstance(settings, dict) for settings in held.values()):
        raise CheckpointError(f"{source}: decoders: expected names and settings in config.json")
    for name in given:
        DECODERS[name]  # an unknown name is the caller's mistake, not the checkpoint's
    # One that comes from elsewhere brings its own settings too.
    whole = {name: "pretrained" in settings for name, settings in given.items()}
    return held | {name: _over({} if whole[name] else held.get(name, {}), own) for name, own in given.items()}


def _over(held: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Nested keys of one mapping with those of another over them."""
    nested = {key: _over(held[key], value) for key, value in given.items()
              if isinstance(value, Mapping) and isinstance(held.get(key), Mapping)}  # fmt: skip
    return {**held, **given, **nested}


def _usable(device: str | torch.device) -> torch.device:
    """The device, if this machine has it.

    Raises:
        ConfigError: there is no such device here.
    """
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError):
        raise ConfigError(f"device: {str(device)!r} is not on this machine; use cpu") from None
    return found


def _with_targets(batch: Batch) -> list[int]:
    """Indices of the links whose turn has a truth to learn from."""
    turns = [batch.samples[meta.sample].turns[meta.turn] for meta in batch.links.meta]
    return [i for i, turn in enumerate(turns) if turn.target is not None]


def check_served(tasks: Sequence[Task]) -> None:
    """One decoder serves a task.

    Raises:
        ConfigError: two do.
    """
    serves: dict[str, str] = {}
    for task in tasks:
        other = serves.setdefault(task.name, task.decoder)
        if other != task.decoder:
            raise ConfigError(f"decoders: {other} and {task.decoder} both serve {task.name}; keep one of them")
