"""Other ways to ask the questions of `questions.py`, in two sets: for training, and for testing only."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

from vtw_demo.embedded.questions import Question

# How a question of each kind is taken apart: its noun, and what else it names.
_PARTS: dict[str, str] = {
    "colour": r"What (?:colou?r is|is the colou?r of) (?P<noun>.+)\?|Which colou?r does (?P<noun2>.+) have\?",
    "shape": r"(?:What shape is|What is|Which shape is) (?P<noun>.+)\?",
    "count": r"How many (?P<noun>.+) (?:are there|do you see|are in the picture)\?",
    "existence": r"(?:Is there|Do you see|Does the picture show) (?P<noun>.+?)(?: in the picture)?\?",
    "where": r"(?:Where is|In which part of the picture is|Where do you see) (?P<noun>.+)\?",
    "relation": r"(?:What|Which object) is (?P<direction>left of|right of|above|below) (?P<noun>.+)\?",
    "size": r"(?:Is (?P<noun>.+) small or large|How big is (?P<noun2>.+)|What size is (?P<noun3>.+))\?",
    "reading": r"(?:What is written on (?P<noun>.+)|What does (?P<noun2>.+) say)\?",
    "description": r".*",
}
TRAINED: dict[str, tuple[str, ...]] = {
    "colour": (
        "Tell me the color of {noun}.", "Name the colour of {noun}.", "{noun} is what color?", "Color of {noun}?",
        "what's the color of {noun}", "Can you tell me what color {noun} is?", "The colour of {noun}, please.",
        "What colour has {noun}?", "What color do you see on {noun}?", "What is {noun}'s color?",
    ),
    "shape": (
        "What kind of shape is {noun}?", "Name the shape of {noun}.", "Tell me what shape {noun} is.",
        "{noun} has which shape?", "what's the shape of {noun}", "What form does {noun} have?", "Shape of {noun}?",
        "Can you tell me the shape of {noun}?", "What is the shape of {noun}?", "Which form has {noun}?",
    ),
    "count": (
        "Count the {noun}.", "How many {noun} can you see?", "What is the number of {noun}?", "Number of {noun}?",
        "How many {noun} does the picture show?", "how many {noun}", "Tell me how many {noun} there are.",
        "How many {noun} can be seen in the image?", "Please count the {noun} in the picture.",
        "In this image, how many {noun} are there?",
    ),
    "existence": (
        "Can you see {noun}?", "Does the image contain {noun}?", "Is {noun} in the image?", "is there {noun}",
        "Is {noun} shown here?", "Can {noun} be seen?", "Does the image have {noun}?", "Do you find {noun} here?",
        "Is there {noun} in this image?", "Does this picture have {noun} in it?", "Could you see {noun} here?",
        "Would you say you see {noun}?", "Is {noun} in the drawing?", "Can you find {noun}?", "Does {noun} appear?",
        "Tell me if there is {noun}.", "Could there be {noun}?", "Would {noun} be in the picture?",
    ),
    "where": (
        "Where in the picture is {noun}?", "Tell me where {noun} is.", "Where's {noun}?", "Position of {noun}?",
        "In what part of the image is {noun}?", "where is {noun} in the image", "Where can I see {noun}?",
        "Which part of the picture shows {noun}?", "Name the place of {noun}.", "Where does {noun} stand?",
        "At which part of the image do you see {noun}?", "Could you tell me where {noun} is?",
        "Could you find {noun} and say where it is?", "Say in which part {noun} is.", "Where can {noun} be seen?",
        "In which place is {noun}?", "What is the place of {noun}?", "Could you say where {noun} is?",
    ),
    "relation": (
        "What do you see {direction} {noun}?", "Name the object {direction} {noun}.", "What's {direction} {noun}?",
        "Which thing is {direction} {noun}?", "what is {direction} {noun}", "Tell me what is {direction} {noun}.",
        "What can be seen {direction} {noun}?", "Which shape is {direction} {noun}?",
    ),
    "size": (
        "Is {noun} large or small?", "Tell me the size of {noun}.", "What is the size of {noun}?", "Size of {noun}?",
        "Is {noun} big or small?", "how large is {noun}", "Is {noun} a small or a large one?",
        "How large would you say is {noun}?", "Does {noun} look small or large?",
    ),
    "reading": (
        "Read what is written on {noun}.", "What can you read on {noun}?", "Which character is on {noun}?",
        "What's on {noun}?", "what is written on {noun}", "Tell me what is written on {noun}.",
        "What character do you see on {noun}?", "Read the text on {noun}.", "What does it say on {noun}?",
        "Which sign do you see on {noun}?", "Could you tell me what is written on {noun}?",
    ),
    "description": (
        "Describe this image.", "What does the picture show?", "Tell me what you see.", "What can you see here?",
        "Please describe the image.", "describe the picture", "What is shown here?", "Give me a description.",
        "What is in this image?", "Describe what you see.", "Could you tell me what is in the picture?",
        "What is in the drawing?", "Say what you see.",
    ),
}  # fmt: skip
# Never trained on.
TESTED: dict[str, tuple[str, ...]] = {
    "colour": (
        "In which color is {noun} painted?", "I'd like to know the color of {noun}.", "Say the colour {noun} has.",
    ),
    "shape": (
        "Could you name the form of {noun}?", "What sort of shape does {noun} have?", "Say which shape {noun} is.",
    ),
    "count": ("What's the count of {noun}?", "Could you count the {noun} for me?", "Say how many {noun} appear."),
    "existence": ("Could you find {noun}?", "Would you say there is {noun}?", "Does {noun} appear in the drawing?"),
    "where": ("Could you locate {noun}?", "At which place is {noun}?", "Say where {noun} can be found."),
    "relation": ("Could you name what is {direction} {noun}?", "Which one stands {direction} {noun}?"),
    "size": ("Would you call {noun} small or large?", "Say how big {noun} is.", "Of what size is {noun}?"),
    "reading": ("Could you read {noun} for me?", "Which sign stands on {noun}?", "Say what {noun} has on it."),
    "description": (
        "Could you describe the drawing?", "Say what is in the picture.", "What's going on in this picture?",
    ),
}  # fmt: skip


def rephrased(question: Question, generator: random.Random, ways: dict[str, tuple[str, ...]] = TRAINED) -> Question:
    """The same question in other words; one that can't be taken apart stays as it is."""
    if question.kind not in ways:
        return question
    parts = re.fullmatch(_PARTS[question.kind], question.text)
    if parts is None:
        return question
    named = parts.groupdict()
    noun = next((value for name, value in named.items() if name.startswith("noun") and value), "")
    if question.kind == "shape" and noun in ("the shape", "in the picture"):
        noun = "the object"
    if question.kind == "reading" and noun == "in the picture":
        noun = "the picture"
    text = generator.choice(ways[question.kind]).format(noun=noun, direction=named.get("direction", ""))
    spelled = text[0].upper() + text[1:] if text.endswith((".", "?")) else text
    return Question(question.kind, spelled, question.answer)


def carelessly_typed(text: str, generator: random.Random) -> str:
    """As people type: now and then all small, without its last mark."""
    if generator.random() < 0.15:
        text = text.lower()
    if generator.random() < 0.15:
        text = text.rstrip("?.")
    return text


def every_phrasing() -> Iterator[str]:
    for ways in (TRAINED, TESTED):
        for texts in ways.values():
            for text in texts:
                yield text.format(noun="the red object", direction="left of")
