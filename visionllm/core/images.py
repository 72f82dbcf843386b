"""Pictures that were made, each with the recipe that makes it again."""

from __future__ import annotations

import hashlib
import json
from base64 import b64encode
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from PIL import Image, PngImagePlugin

from visionllm.core.answer import RESULT_TYPES, save_as
from visionllm.core.config import Config, validate
from visionllm.core.errors import PictureError, ShapeError
from visionllm.core.sample import Picture
from visionllm.core.superlink import LinkMeta

KEY = "visionllm"  # of the text in a PNG file that holds the recipe
_GAP, _PAPER = 8, (255, 255, 255)


class Recipe(Config):
    """How a picture was made; with the same model, and the same source pictures, it can be made again.

    Args:
        task: registered name of the task.
        phrase: what the picture shows, or how it was changed.
        prompt: the user's words; None where the task was called by name (``model.generate``).
        decoder: registered name of the decoder.
        options: of the decoder in that call.
        place: which of the pictures that the decoder made in that call it was; its seed is that much higher.
        size: (width, height).
        model: fingerprint of the model.
        source: name of the picture it was made of, or None.
        asked_about: fingerprints of the pictures that were asked about; None where nobody noted them.
        turn: of the conversation it was made in.
    """

    task: str
    phrase: str
    prompt: str | None
    decoder: str
    options: dict[str, Any]
    place: int
    size: tuple[int, int]
    model: str | None
    source: str | None = None
    asked_about: tuple[str, ...] | None = None
    turn: int = 0

    @property
    def seed(self) -> int:
        """What its noise was drawn from."""
        return int(self.options.get("seed", 0)) + self.place

    @classmethod
    def read(cls, path: str | Path) -> Recipe:
        """The recipe that a saved picture carries.

        Raises:
            PictureError: the file is not there, no PNG picture, or carries none.
        """
        path = Path(path)
        try:
            with Image.open(path) as image:
                text = getattr(image, "text", {}).get(KEY)
        except FileNotFoundError:
            raise PictureError(f"{path}: no such file; give the path of a picture that was saved") from None
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            raise PictureError(f"{path}: not a picture that can be read") from None
        if text is None:
            raise PictureError(f"{path}: carries no recipe; only PNG files saved from a result do")
        try:
            values = json.loads(text)
        except ValueError:
            raise PictureError(f"{path}: its recipe is not JSON") from None
        return validate(cls, values, source=f"{path}: recipe")


def fingerprint_of(picture: Picture) -> str:
    """Short hash of a picture's pixels."""
    return hashlib.sha256(f"{picture.size}".encode() + picture.pixels.tobytes()).hexdigest()[:12]


def places_of(links: Sequence[LinkMeta], count: int = 1) -> list[int]:
    """Of each link the place of its first picture among those of its sample, in reading order; ``count`` a link."""
    seen: dict[int, int] = defaultdict(int)
    places = [0] * len(links)
    for i in sorted(range(len(links)), key=lambda i: (links[i].sample, links[i].turn, links[i].group)):
        places[i] = seen[links[i].sample]
        seen[links[i].sample] += count
    return places


@RESULT_TYPES.register("images")
@dataclass(kw_only=True, slots=True, frozen=True, eq=False, repr=False)
class Images:
    """Pictures made of some phrases, in the order asked.

    Args:
        pictures: one or several a phrase.
        recipes: one a picture.

    Raises:
        ShapeError: there is not one recipe a picture.
    """

    pictures: tuple[Picture, ...] = ()
    recipes: tuple[Recipe, ...] = ()

    # It is what was asked for, not something drawn on what was shown.
    made: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if len(self.pictures) != len(self.recipes):
            raise ShapeError(f"{len(self.pictures)} pictures with {len(self.recipes)} recipes")

    @classmethod
    def merge(cls, results: Sequence[Self], picture: Picture | None = None) -> Self:
        """The pictures of several links, in their order."""
        return cls(
            pictures=tuple(one for result in results for one in result.pictures),
            recipes=tuple(one for result in results for one in result.recipes),
        )

    def __len__(self) -> int:
        return len(self.pictures)

    def __iter__(self) -> Iterator[Picture]:
        return iter(self.pictures)

    def __getitem__(self, index: int) -> Images:
        """One of the pictures with its recipe."""
        return Images(pictures=(self.pictures[index],), recipes=(self.recipes[index],))

    @property
    def scores(self) -> np.ndarray:
        """(N,) ones: a picture that was made is there."""
        return np.ones(len(self), np.float32)

    def of(self, phrase: str) -> Images:
        """The pictures of one phrase."""
        rows = [i for i, recipe in enumerate(self.recipes) if recipe.phrase == phrase]
        return Images(pictures=tuple(self.pictures[i] for i in rows), recipes=tuple(self.recipes[i] for i in rows))

    def statements(self) -> list[str]:
        """One line a picture: ``a red car: 64 x 64 pixels, seed 0``; a seed where chance had a part in it."""
        return [
            f"{recipe.phrase}: {recipe.size[0]} x {recipe.size[1]} pixels"
            + (f", seed {recipe.seed}" if "seed" in recipe.options else "")
            for recipe in self.recipes
        ]

    def to_dict(self) -> dict[str, Any]:
        """Recipes, and each picture as a PNG file in base 64."""
        return {
            "images": [
                {**recipe.model_dump(mode="json"), "png": b64encode(self._png(i)).decode()}
                for i, recipe in enumerate(self.recipes)
            ]
        }

    def draw(self, picture: Picture | Image.Image | None = None) -> Image.Image:
        """All of them side by side, to the right of the given picture if there is one.

        Raises:
            PictureError: there is none to draw.
        """
        given = Image.fromarray(picture.pixels) if isinstance(picture, Picture) else picture
        row = [] if given is None else [given]
        row += [Image.fromarray(one.pixels) for one in self.pictures]
        if not row:
            raise PictureError("no picture was made")
        if len(row) == 1:
            return row[0]
        width = sum(one.width for one in row) + _GAP * (len(row) - 1)
        sheet = Image.new("RGB", (width, max(one.height for one in row)), _PAPER)
        x = 0
        for one in row:
            sheet.paste(one, (x, 0))
            x += one.width + _GAP
        return sheet

    def save(self, path: str | Path) -> None:
        """Write JSON, or the drawing, by the suffix of ``path``. A single picture saved as PNG carries its recipe."""
        if len(self) == 1 and Path(path).suffix.lower() == ".png":
            try:
                Path(path).write_bytes(self._png(0))
            except OSError:
                raise PictureError(f"{path}: cannot be written; check that the folder exists and is writable") from None
            return
        save_as(path, values=self.to_dict, drawing=self.draw)

    def _png(self, index: int) -> bytes:
        info = PngImagePlugin.PngInfo()
        info.add_text(KEY, json.dumps(self.recipes[index].model_dump(mode="json"), allow_nan=False))
        file = BytesIO()
        Image.fromarray(self.pictures[index].pixels).save(file, "PNG", pnginfo=info)
        return file.getvalue()

    def __repr__(self) -> str:
        return f"Images({', '.join(self.statements()) or 'none'})"

    def _repr_html_(self) -> str:
        shown = (
            f'<figure style="display:inline-block"><img src="data:image/png;base64,{b64encode(self._png(i)).decode()}">'
            f"<figcaption>{escape(recipe.phrase)}</figcaption></figure>"
            for i, recipe in enumerate(self.recipes)
        )
        return f"<div>{''.join(shown)}</div>"
