"""The pictures and questions of the `easy-vqa` package, written by others."""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import easy_vqa
from PIL import Image


@dataclass(frozen=True)
class PicturedQuestions:
    """One picture of easy-vqa with all its questions, as (question, answer) pairs."""

    path: Path
    questions: tuple[tuple[str, str], ...]

    def picture(self) -> Image.Image:
        return Image.open(self.path).convert("RGB")


def easy_vqa_pictures(split: Literal["train", "test"]) -> list[PicturedQuestions]:
    """The split's pictures in the package's order. The test split is for evaluation only."""
    if split == "train":
        questions, paths = easy_vqa.get_train_questions(), easy_vqa.get_train_image_paths()
    else:
        questions, paths = easy_vqa.get_test_questions(), easy_vqa.get_test_image_paths()
    by_picture: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for text, answer, picture in zip(*questions, strict=True):
        by_picture[picture].append((text, answer))
    return [PicturedQuestions(Path(paths[picture]), tuple(asked)) for picture, asked in by_picture.items()]
