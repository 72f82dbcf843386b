"""The command line. Options are few; everything else is a key of a config."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from visionllm import VisionLLMError

if TYPE_CHECKING:
    from visionllm import Answer, Box, Pixels, Point, Polygon, Scribble

_BAR = 30  # characters
_REGIONS = (
    "x,y or x1,y1,x2,y2 in pixels, scribble:x,y,x,y,..., polygon:x,y,x,y,x,y,... or mask:FILE, whose bright pixels "
    "count; behind it @2 where it lies in picture 2 of --together"
)

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None,
    help="One multimodal LLM that answers in text and routes what text cannot carry to task decoders.",
)  # fmt: skip

Model = Annotated[str | None, typer.Option(help="Checkpoint folder or hub id; the embedded model by default.")]
Device = Annotated[str, typer.Option(help="Where to run, such as cpu or cuda.")]
Root = Annotated[Path | None, typer.Option(help="Folder of the data sets; $VISIONLLM_DATA by default.")]


@app.command()
def ask(
    prompt: Annotated[str, typer.Argument(help="What to look for, such as 'detect all cars'.")],
    images: Annotated[
        list[Path] | None, typer.Argument(help="Pictures; each is asked about on its own. None to ask without one.")
    ] = None,
    together: Annotated[bool, typer.Option("--together", help="Ask once, about all pictures.")] = False,
    model: Model = None,
    out: Annotated[Path | None, typer.Option(help="Drawn picture (one image) or folder (several).")] = None,
    json_out: Annotated[bool, typer.Option("--json", help="Print JSON only.")] = False,
    region: Annotated[list[str] | None, typer.Option(help=f"What a <region> of the prompt means: {_REGIONS}.")] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="DECODER.KEY=VALUE, such as generation.seed=3 or objects.threshold=0.3.")
    ] = None,
    device: Device = "cpu",
) -> None:
    """Ask a prompt about pictures, or without one: the reply, a table of what was found, and a drawing."""
    from visionllm import Answer, VisionLLM

    if out is not None and len(images or []) <= 1:
        Answer.check_path(out)
    regions = [_region(text) for text in region or []]
    vision = VisionLLM.from_pretrained(model, device=device)
    images = images or []
    options = _options(option or [])
    if out is not None:
        _make(out if len(images) > 1 else out.parent)
    for name, decoder in vision.decoders.items():
        if "progress" in type(decoder).Options.model_fields:
            options.setdefault(name, {}).setdefault("progress", _steps)
    shown: list[Any] = [images] if together and images else list(images)
    asked: list[Any] = [(one, prompt, regions) for one in shown or [None]]
    answers = vision.ask_many(asked, options=options)
    if json_out:
        values = [answer.to_dict() for answer in answers]
        typer.echo(json.dumps(values[0] if len(values) == 1 else values, indent=2))
    if not json_out:
        for answer in answers:
            _show(answer)
    if together and len(images) > 1:
        answers = [answer.on(number) for answer in answers for number in range(len(images))]
    for number, answer in enumerate(answers):
        target = _target(out, images, number)
        if target is not None and not answer.unserved:
            for path, what in _files(answer, target):
                what.save(path)
                typer.echo(f"drawn: {path}", err=json_out)
    lacking = [meta for answer in answers for meta in answer.unserved]
    if lacking:
        raise VisionLLMError(f"{lacking[0].phrase!r}: {lacking[0].task} needs a picture; name one behind the prompt")


@app.command()
def replay(
    file: Annotated[Path, typer.Argument(help="A PNG file that was saved from a result.")],
    out: Annotated[Path, typer.Option(help="Where the picture goes.")],
    images: Annotated[list[Path] | None, typer.Argument(help="The pictures that were asked about, if any.")] = None,
    model: Model = None,
    device: Device = "cpu",
) -> None:
    """Make a picture again by the recipe it carries, with the model that made it."""
    from visionllm import VisionLLM

    _make(out.parent)
    made = VisionLLM.from_pretrained(model, device=device).replay(file, images or None)
    made.save(out)
    typer.echo(f"made: {out}")


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="A training config, such as configs/train/nano_2.yaml.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value words, such as train.steps=2000.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Print what the run would do, and stop.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint of the run.")] = False,
) -> None:
    """Train a model."""
    from visionllm import describe, load_config
    from visionllm import train as run

    settings = load_config(config, overrides or [])
    if plan:
        typer.echo(describe(settings))
    else:
        typer.echo(f"model: {run(settings, resume=resume)}")


@app.command()
def eval(
    dataset: Annotated[str, typer.Option(help="A name of the catalogue, or the path of a card.")],
    model: Model = None,
    split: Annotated[str, typer.Option(help="Split of the card.")] = "val",
    task: Annotated[str | None, typer.Option(help="What to ask; the card's task by default.")] = None,
    known: Annotated[bool, typer.Option("--known", help="Measure the known-task path.")] = False,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the report here.")] = None,
    limit: Annotated[int | None, typer.Option(help="First so many samples.")] = None,
    chunk: Annotated[int | None, typer.Option(help="Phrases in one question; all by default.")] = None,
    among: Annotated[int | None, typer.Option(help="Fill every question up to so many with invented names.")] = None,
    judge: Annotated[
        list[str] | None, typer.Option(help="METRIC=MODEL: a further metric and what it asks, such as shows=embedded.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Questions at a time.")] = 8,
    data_root: Root = None,
    device: Device = "cpu",
) -> None:
    """Score a model on a split, free-running unless --known."""
    from visionllm import VisionLLM, evaluate

    vision = VisionLLM.from_pretrained(model, device=device)
    if json_path is not None:
        _make(json_path.parent)
        if json_path.is_dir():
            raise VisionLLMError(f"--json {json_path}: is a folder; name a file in it")
    report = evaluate(
        vision, dataset, split, data_root=data_root, task=task, known=known, limit=limit, chunk=chunk, among=among,
        judges=_judges(judge or []), batch_size=batch_size, progress=_progress,
    )  # fmt: skip
    text = json.dumps(report, indent=2)
    typer.echo(text)
    if json_path is not None:
        json_path.write_text(text + "\n", encoding="utf-8")


@app.command()
def score(
    card: Annotated[Path, typer.Argument(help="A score card, such as configs/scores/nano.yaml.")],
    out: Annotated[Path, typer.Option(help="Folder of the reports; those of this model are not made anew.")],
    model: Model = None,
    data_root: Root = None,
    device: Device = "cpu",
) -> None:
    """Run all evaluations of a score card and print its table."""
    from visionllm import VisionLLM
    from visionllm import score as run

    vision = VisionLLM.from_pretrained(model, device=device)
    typer.echo(run(vision, card, out, data_root=data_root, progress=_named_progress))


@app.command()
def new_decoder(
    name: Annotated[str, typer.Argument(help="Of the decoder and its task, such as depth.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write; visionllm-NAME by default.")] = None,
) -> None:
    """Write a small decoder package that installs, trains and answers, to be changed into yours."""
    from visionllm import new_decoder as write

    folder = write(name, out)
    typer.echo(f"{folder}: pip install -e {folder}, then visionllm check-decoder {name}")


@app.command()
def check_decoder(
    name: Annotated[str, typer.Argument(help="Registered name of an installed decoder.")],
    only: Annotated[list[str] | None, typer.Option(help="Names of checks; all by default.")] = None,
    json_out: Annotated[bool, typer.Option("--json", help="Print JSON only.")] = False,
) -> None:
    """Prove that a decoder does what it owes; status 1 where it does not."""
    from visionllm import check_decoder as check

    report = check(name, only=only or [])
    if json_out:
        typer.echo(json.dumps(report.to_dict(), indent=2))
    else:
        from rich.console import Console
        from rich.table import Table

        table = Table("check", "", "what", title=f"decoder {name}")
        for line in report.lines():
            table.add_row(*line)
        console = Console(highlight=False)
        console.print(table, markup=False)
        console.print(report.costs(), markup=False)
    if not report.passed:
        raise typer.Exit(1)


@app.command()
def data() -> None:
    """List the data sets of the catalogue."""
    from visionllm import catalogue

    for name in catalogue():
        typer.echo(name)


@app.command()
def card(
    config: Annotated[Path, typer.Argument(help="A configuration of MMDetection or MMPose.")],
    trust: Annotated[bool, typer.Option("--trust", help="Run it: a Python configuration is code.")] = False,
) -> None:
    """Print the card of the data sets that a configuration of OpenMMLab defines."""
    import yaml

    from visionllm import card_from_config

    typer.echo(yaml.safe_dump(card_from_config(config, trust=trust), sort_keys=False).rstrip())


def main(arguments: list[str] | None = None) -> None:
    """Run the command line. A mistake of the caller's is one line on standard error and status 2."""
    try:
        app(args=arguments, prog_name="visionllm")
    except VisionLLMError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _show(answer: Answer) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    console.print(f"prompt: {answer.prompt}", markup=False)
    console.print(f"reply:  {answer.text}", markup=False)
    several = len(answer.pictures) > 1
    for part in [answer.on(number) for number in range(len(answer.pictures))] if several else [answer]:
        table = Table("phrase", "score", "x1", "y1", "x2", "y2", title=part.pictures[0].name if part.pictures else None)
        for link in part.links:
            found = link.result
            for score, box in zip(found.scores, getattr(found, "boxes_xyxy", ()), strict=False):
                table.add_row(link.meta.phrase, f"{score:.2f}", *(f"{edge:.0f}" for edge in box))
        if table.rows:
            console.print(table)
    for line in answer.statements():
        console.print(line, markup=False)


def _region(text: str) -> Box | Pixels | Point | Polygon | Scribble:
    """What ``--region`` says.

    Raises:
        VisionLLMError: it is none of the kinds.
    """
    from visionllm import Box, Pixels, Point, Polygon, Scribble

    number = re.search(r"@([1-9]\d*)$", text)
    place, picture = (text[: number.start()], int(number[1]) - 1) if number else (text, 0)
    if place.startswith("mask:"):
        return Pixels(_bright(text, Path(place.removeprefix("mask:"))), picture=picture)
    kind, colon, rest = place.rpartition(":")
    try:
        numbers = [float(word) for word in rest.split(",")]
    except ValueError:
        numbers = []
    pairs = list(zip(numbers[::2], numbers[1::2], strict=False))
    if not colon and len(numbers) == 2:
        return Point(*numbers, picture=picture)
    if not colon and len(numbers) == 4:
        return Box(*numbers, picture=picture)
    if kind in ("scribble", "polygon") and pairs and len(numbers) % 2 == 0:
        return (Scribble if kind == "scribble" else Polygon)(pairs, picture=picture)
    raise VisionLLMError(f"--region {text}: expected {_REGIONS}; such as 40,60")


def _bright(text: str, path: Path) -> Any:
    """(H, W) bool: the pixels of a picture that are brighter than grey.

    Raises:
        VisionLLMError: there is no picture.
    """
    import numpy as np
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert("L")) > 127
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        raise VisionLLMError(f"--region {text}: {path} is not a picture that can be read") from None


def _options(texts: list[str]) -> dict[str, dict[str, Any]]:
    """Decoder -> key -> value; a value is JSON, or else a word.

    Raises:
        VisionLLMError: it is not DECODER.KEY=VALUE.
    """
    found: dict[str, dict[str, Any]] = {}
    for text in texts:
        path, equals, value = text.partition("=")
        decoder, _, key = path.partition(".")
        if not (decoder and key and equals):
            raise VisionLLMError(f"--option {text}: expected DECODER.KEY=VALUE, such as generation.seed=3")
        own = found.setdefault(decoder, {})
        try:
            own[key] = json.loads(value)
        except ValueError:
            own[key] = value
    return found


def _judges(texts: list[str]) -> dict[str, str]:
    """Metric -> what it asks.

    Raises:
        VisionLLMError: it is not METRIC=MODEL.
    """
    for text in texts:
        if not all(text.partition("=")[::2]):
            raise VisionLLMError(f"--judge {text}: expected METRIC=MODEL, such as shows=embedded")
    return {metric: model for metric, _, model in (text.partition("=") for text in texts)}


def _target(out: Path | None, images: list[Path], number: int) -> Path | None:
    """Where the drawing goes: the path itself, or a file in the folder; pictures of one name are told apart."""
    if out is None or len(images) <= 1:
        return out
    stem = images[number].stem
    alike = [path.stem for path in images].count(stem) > 1
    return out / (f"{stem}_{number + 1}.png" if alike else f"{stem}.png")


def _make(folder: Path) -> None:
    """The folder, where it is not there.

    Raises:
        VisionLLMError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise VisionLLMError(f"{folder}: cannot be made a folder ({error.strerror}); choose another place") from None


def _files(answer: Answer, target: Path) -> list[tuple[Path, Any]]:
    """What to save where: of several pictures that were made each by itself, numbered, so that each has its recipe."""
    made = answer.images
    alone = target.suffix.lower() != ".json" and all(getattr(one, "made", False) for one in answer.results.values())
    if alone and len(made) > 1:
        return [(target.with_stem(f"{target.stem}_{i + 1}"), made[i]) for i in range(len(made))]
    return [(target, answer)]


def _named_progress(name: str, done: int, total: int) -> None:
    _progress(done, total, f"{name}: ")


def _steps(done: int, total: int) -> None:
    _progress(done, total, "drawing: ")


def _progress(done: int, total: int, name: str = "") -> None:
    if sys.stderr.isatty():
        filled = _BAR * done // max(1, total)
        bar = "#" * filled + "." * (_BAR - filled)
        print(f"\r{name}[{bar}] {done}/{total}", end="\n" if done == total else "", file=sys.stderr)
