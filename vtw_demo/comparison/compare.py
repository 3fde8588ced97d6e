"""One query, two runs: with every layer seeing the picture, and with the visual tokens withdrawn at layer K; and where
it is asked for, a third by another method."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, Literal

from vtw_demo.comparison.follow_up import FollowUp, Turn, check_history, conversations
from vtw_demo.comparison.timed_generate import Run, run_timed
from vtw_demo.errors import UserError
from vtw_demo.formats import PlainData
from vtw_demo.measurements.equal_flops import RIVALS, equal_recipe
from vtw_demo.measurements.token_probabilities import first_difference
from vtw_demo.models.loading import VisionLanguageModel
from vtw_demo.models.prompt import Prompt
from vtw_demo.withdrawal.prune import read_recipe
from vtw_demo.withdrawal.withdraw import Automatic, check_layer, read_layer, whole_number

RunName = Literal["full", "withdrawn", "beside", "fresh"]
MAXIMUM_NEW_TOKENS = 1024


@dataclass(frozen=True)
class RunProgress:
    """A token of a run has come, or it `is_stopped`: the text so far."""

    run: RunName
    text: str
    new_tokens: int
    is_stopped: bool = False


@dataclass(frozen=True)
class RunFinished:
    run: RunName
    result: Run


@dataclass(frozen=True)
class Comparison(PlainData):
    """Both runs of one query. `visual_tokens` and `text_tokens` are the prompt's; `detail` is that of the picture;
    `recipe` is that of `prune` by which the run `beside` was made, where there is one."""

    model: str
    precision: str
    device: str
    detail: str
    question: str
    layer: int
    layers: int
    visual_tokens: int
    text_tokens: int
    full: Run
    withdrawn: Run
    beside: Run | None = None
    recipe: str | None = None

    def runs(self) -> tuple[RunName, ...]:
        """Those that were made."""
        return ("full", "withdrawn") if self.beside is None else ("full", "withdrawn", "beside")

    @property
    def layer_is_automatic(self) -> bool:
        """Whether the withdrawn run's prefill chose `layer`."""
        return self.withdrawn.chosen_layer is not None

    @property
    def same_answer(self) -> bool:
        return self.full.tokens == self.withdrawn.tokens

    @property
    def encoded_once(self) -> bool:
        """Whether the withdrawn run took the picture as the full one had encoded it, which took it long: the times of
        the withdrawn run are without."""
        return self.withdrawn.encode_ms is None

    @property
    def first_difference(self) -> int | None:
        """The first token that differs, counted from 1; None where the answers are the same."""
        return first_difference(self.full.tokens, self.withdrawn.tokens)

    @property
    def first_differing_word(self) -> int | None:
        """Counted from 1; None where the words are the same."""
        return first_difference(self.full.answer.split(), self.withdrawn.answer.split())


Event = RunProgress | RunFinished | Comparison
FollowUpEvent = RunProgress | RunFinished | FollowUp


def compare(
    vlm: VisionLanguageModel,
    image: Any,
    question: str,
    layer: int | Automatic,
    max_new_tokens: int = 64,
    full: Run | None = None,
    stop: threading.Event | None = None,
    beside: str | None = None,
    history: Comparison | Sequence[Turn] | None = None,
) -> Iterator[Event | FollowUp]:
    """Answer `question` about `image` twice, decoding greedily, and yield events as they happen.

    `image` is a picture or clip as `VisionLanguageModel.shown` takes it: of Pillow, a path, bytes or an array.

    For each run a `RunProgress` a token and a `RunFinished`; at the end the `Comparison`. Where the full run takes more
    than a second to encode the picture, the withdrawn one takes it as that has encoded it. `layer` is the withdrawal
    layer K, 1 <= K <= L, or "auto": the withdrawn run's prefill chooses K as in `withdraw`; the comparison's `layer`
    is what it chose. With `full`, an earlier full run of the same query, only the withdrawn run is made. Setting `stop`
    ends the run in hand within a token; so does closing the iterator. A stopped comparison ends with the runs that
    were made, a `RunProgress` that says so and no `Comparison`. `beside` asks for a third run: one of `RIVALS`, whose
    prefill then takes as many FLOPs as the withdrawn run's, as near as it comes; or a recipe of `prune`.

    With `history`, `question` goes on in a conversation about the same picture: an earlier `Comparison` at the same
    `layer`, or a `Turn` for each earlier question. Each run goes on in its own conversation, with the KV cache that its
    own answer has left: the full run's history has the full run's answers, the withdrawn one's the withdrawn run's. The
    caches are filled again by teacher forcing, in time that isn't counted. A third run, "fresh", reads the withdrawn
    run's conversation again from its first token without withdrawal; read again at the same K, it would hold the keys
    that the kept cache holds. The last event is then a `FollowUp`.

    The model waits while its reader handles an event, and that time is not counted. Raises ValueError for a bad
    picture, question, layer, number of tokens, `beside` or `history`, and where the model's chat template has no
    second turn, before anything runs.
    """
    if history is not None:
        if full is not None or beside is not None:
            raise UserError("With a history, both runs go on from their own answers: give neither `full` nor `beside`.")
        layer = check_layer(layer, vlm.layers)
        turns = turns_of(history, layer)
        return ask_on(vlm, vlm.prompt(image, turns[0].question), turns, question, layer, max_new_tokens, stop)
    layer = read_layer(layer, vlm.layers)
    return compare_prompt(vlm, vlm.prompt(image, question), layer, max_new_tokens, full, stop, beside)


def compare_prompt(
    vlm: VisionLanguageModel,
    prompt: Prompt,
    layer: int | Automatic,
    max_new_tokens: int = 64,
    full: Run | None = None,
    stop: threading.Event | None = None,
    beside: str | None = None,
) -> Iterator[Event]:
    """`compare` for a prompt that has been made already."""
    layer, max_new_tokens = read_layer(layer, vlm.layers), _checked_length(vlm, prompt, max_new_tokens)
    stopped = stop or threading.Event()
    runs: dict[RunName, Run] = {} if full is None else {"full": full}
    recipe = None if beside is None else _recipe(vlm, prompt, layer, beside)
    pruned: dict[RunName, int | str] = {"full": vlm.layers, "withdrawn": layer}
    pruned |= {} if recipe is None else {"beside": recipe}

    def events() -> Iterator[Event]:
        yield from _in_turn(vlm, {name: (prompt, how) for name, how in pruned.items()}, max_new_tokens, stopped, runs)
        if not runs.keys() >= pruned.keys():
            return
        yield Comparison(
            model=vlm.name,
            precision=vlm.precision,
            device=vlm.place,
            detail=vlm.detail,
            question=prompt.question,
            layer=runs["withdrawn"].chosen_layer or int(layer),
            layers=vlm.layers,
            visual_tokens=prompt.visual_tokens,
            text_tokens=prompt.length - prompt.visual_tokens,
            full=runs["full"],
            withdrawn=runs["withdrawn"],
            beside=runs.get("beside"),
            recipe=recipe,
        )

    return events()


def _checked_length(vlm: VisionLanguageModel, prompt: Prompt, max_new_tokens: int) -> int:
    max_new_tokens = whole_number(max_new_tokens, "The number of new tokens")
    if not 1 <= max_new_tokens <= MAXIMUM_NEW_TOKENS:
        raise UserError(f"The number of new tokens must be from 1 to {MAXIMUM_NEW_TOKENS}; this is {max_new_tokens}.")
    vlm.check_length(prompt.length, max_new_tokens)
    return max_new_tokens


def _in_turn(
    vlm: VisionLanguageModel,
    asked: Mapping[RunName, tuple[Prompt, int | str]],
    max_new_tokens: int,
    stopped: threading.Event,
    runs: dict[RunName, Run],
) -> Iterator[RunProgress | RunFinished]:
    """Make those of the runs that aren't among `runs`, where they are put; a stopped one ends with what says so."""
    for name in [name for name in asked if name not in runs]:
        progress = RunProgress(name, "", 0)
        run = run_timed(vlm, *asked[name], max_new_tokens, stopped, encoded_before=name in ("withdrawn", "beside"))
        with closing(run) as steps:
            for step in steps:
                if isinstance(step, Run):
                    runs[name] = step
                    yield RunFinished(name, step)
                else:
                    yield (progress := RunProgress(name, vlm.decode(step), len(step)))
        if name not in runs:
            yield replace(progress, is_stopped=True)
            return


def turns_of(history: Comparison | Sequence[Turn], layer: int) -> tuple[Turn, ...]:
    """A history as `compare` takes it; UserError for one that isn't, or that was made at another `layer`."""
    if not isinstance(history, Comparison):
        return check_history(history)
    if history.layer != layer:
        raise UserError(
            f"The history was answered at K = {history.layer}, and its KV cache can't go on at K = {layer}: ask the "
            "first question at that K again."
        )
    return (Turn(history.question, history.full.tokens, history.withdrawn.tokens),)


def ask_on(
    vlm: VisionLanguageModel,
    prompt: Prompt,
    history: tuple[Turn, ...],
    question: str,
    layer: int,
    max_new_tokens: int = 64,
    stop: threading.Event | None = None,
) -> Iterator[FollowUpEvent]:
    """`compare` with a history, whose first question `prompt` is made of."""
    full, withdrawn = conversations(vlm, prompt, history, question)
    max_new_tokens = max(_checked_length(vlm, one, max_new_tokens) for one in (full, withdrawn))
    runs = dict[RunName, Run]()
    asked: dict[RunName, tuple[Prompt, int | str]] = {
        "full": (full, vlm.layers),
        "withdrawn": (withdrawn, layer),
        "fresh": (replace(withdrawn, held=0), vlm.layers),
    }

    def events() -> Iterator[FollowUpEvent]:
        yield from _in_turn(vlm, asked, max_new_tokens, stop or threading.Event(), runs)
        if "fresh" in runs:
            size = withdrawn.length, withdrawn.length - withdrawn.held
            made = runs["full"], runs["withdrawn"], runs["fresh"]
            yield FollowUp(history, withdrawn.question, layer, vlm.layers, *size, *made)

    return events()


def _recipe(vlm: VisionLanguageModel, prompt: Prompt, layer: int | Automatic, beside: str) -> str:
    """By which the run beside is made; UserError where it can't be."""
    recipe = beside
    if beside in RIVALS:
        if layer == "auto":
            raise UserError(
                f"{beside} is to take as many FLOPs as withdrawal, unknown before the prefill has chosen the layer. "
                'Name a layer, or a recipe such as "2:fastv:0.5".'
            )
        recipe = equal_recipe(beside, vlm.model.config, prompt.length, prompt.visual_tokens, layer)
    elif ":" not in beside:
        raise UserError(
            f"Beside withdrawal, one of {', '.join(RIVALS)} can run, or a recipe such as "
            f'"2:fastv:0.5;16:withdraw"; this is {beside!r}.'
        )
    for step in read_recipe(recipe):
        step.check(vlm.model)
    return recipe


@dataclass(frozen=True)
class LayerAnswer:
    layer: int
    run: Run


def answer_at_layers(
    vlm: VisionLanguageModel,
    prompt: Prompt,
    layers: Sequence[int],
    full: Run,
    max_new_tokens: int = 64,
    stop: threading.Event | None = None,
) -> Iterator[LayerAnswer]:
    """Answer the prompt with withdrawal at each of `layers`, timed as `compare` does; `full` is the run without.
    Setting `stop` ends the run in hand within a token, and the rest with it."""
    for layer in layers:
        for event in compare_prompt(vlm, prompt, layer, max_new_tokens, full=full, stop=stop):
            if isinstance(event, RunFinished):
                yield LayerAnswer(layer, event.result)
        if stop is not None and stop.is_set():
            return


def first_stable_layer(full: Run, answers: Sequence[LayerAnswer]) -> int | None:
    """The first K from which on all of `answers`, in ascending order of K, are the full one; None if the last isn't."""
    first = None
    for answer in reversed(answers):
        if answer.run.tokens != full.tokens:
            break
        first = answer.layer
    return first
