"""What can be loaded, and how: what is checked before, what is quantized, and how far it is."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText, BitsAndBytesConfig
from transformers.utils import logging as transformers_logging

from vtw_demo.errors import UserError
from vtw_demo.files import data_beside
from vtw_demo.models import hardware
from vtw_demo.models.checkpoint import check_files, check_fit, check_format
from vtw_demo.models.device_check import check_device
from vtw_demo.models.devices import (
    check_finite,
    compute_dtype,
    find_device,
    on_model_thread,
    on_zero_gpu,
    refusals,
    refuse_device,
)
from vtw_demo.models.hub import ModelFiles, fetch, find_files
from vtw_demo.models.picture_detail import Detail, read_detail
from vtw_demo.models.processors import load_processor
from vtw_demo.models.quantization import BITS, Architecture, describe, quantized_bits
from vtw_demo.models.vision_language_model import QUANTIZATIONS, Quantization, VisionLanguageModel
from vtw_demo.withdrawal.withdraw import withdraw

# At each product of 8-bit weights, bitsandbytes would warn that it takes numbers of 16 bits.
logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
# On newer processors it would advise to install code from the hub.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
# Its table of weights that don't fit: `check_fit` says it in a sentence.
logging.getLogger("transformers.modeling_utils").addFilter(lambda record: "LOAD REPORT" not in record.getMessage())

EMBEDDED = "embedded"
EMBEDDED_PURPOSE = "This small model knows drawn, coloured shapes only, and no photos."
EMBEDDED_FOLDER = Path(__file__).resolve().parents[2] / "assets" / "embedded"

EXPANDED = "stored in 4 bits, expanded: this processor is faster so"

# Beside its weights a model needs room for activations and the KV cache, on a GPU for kernels too.
MEMORY_SHARE, KERNEL_BYTES = 1.1, 500_000_000

_ERRORS: dict[str, str] = data_beside(__file__, "loading_errors.toml")

Step = Literal["checking", "downloading", "reading weights", "warming up"]


@dataclass(frozen=True)
class LoadProgress:
    """How far the loading of a model is: `done` of `total`, in bytes while downloading; 0 of 0 where it isn't known."""

    name: str
    step: Step
    done: int = 0
    total: int = 0

    def __str__(self) -> str:
        if self.step == "downloading":
            return f"Downloading {self.name}: {self.done / 1e9:.2f} of {self.total / 1e9:.2f} GB."
        share = f", {100 * self.done / self.total:.0f} %" if self.total else ""
        return f"{self.step.capitalize()}: {self.name}{share}."


OnProgress = Callable[[LoadProgress], None]


@dataclass(frozen=True)
class ModelChoice:
    """The arguments of `load`, and why these, in a sentence; "" where they were asked for."""

    name: str = EMBEDDED
    quantization: Quantization | None = None
    device: str | None = None
    revision: str | None = None
    quantize_all: bool = False
    reason: str = ""

    def __post_init__(self) -> None:
        if self.quantization is not None and self.quantization not in QUANTIZATIONS:
            raise UserError(f"Unknown quantization {self.quantization!r}: choose {', '.join(QUANTIZATIONS)} or none.")


@dataclass(frozen=True)
class ModelOutlook:
    """A model that can be loaded, before it is."""

    device: torch.device
    dtype: torch.dtype  # of the weights that aren't quantized
    architecture: Architecture
    files: ModelFiles
    needed_bytes: int  # on the device
    note: str = ""  # what is to be said of the device, if anything


def load(
    name: str = EMBEDDED,
    quantization: Quantization | None = None,
    device: str | None = None,
    revision: str | None = None,
    quantize_all: bool = False,
    on_progress: OnProgress | None = None,
    picture_detail: Detail = "usual",
) -> VisionLanguageModel:
    """Load a model and its processor, ready to run: warmed up with and without withdrawal.

    - `name`: "embedded" (the model that ships with this project), a folder, or a hub id.
    - `quantization`: None, "4bit" (bitsandbytes NF4 with double quantization) or "8bit", of the linear modules in the
      decoder layers. The embedding, the vision tower, the projector and the head stay as they are, unless
      `quantize_all`: then every linear module is quantized, but for a head that shares the embedding's weights.
    - `device`: "cuda", "mps", "cpu", ...; None takes a GPU where there is one that computes what the CPU does.
    - `revision`: a branch, tag or commit of the hub.
    - `on_progress` is called with what is being done, in whatever thread does it. What it raises ends the loading.
    - `picture_detail`: how much of a picture it is shown, "low", "usual" or "high"; `at_detail` gives another.

    Weights are read and warmed up on the model's thread (`devices`); a download keeps nobody from it.
    Weights that aren't quantized are bfloat16 where the device computes in it, else float32, as the embedded model's
    on a CPU. The embedded model, stored in 4 bits, is expanded unless "4bit" is asked for, and where the CPU is slower
    with them even then. Only safetensors are read, and no code that comes with a model is run.

    Raises what `check_model` raises, before anything is downloaded, and UserError for what can't be loaded after all.
    """
    detail, choice = read_detail(picture_detail), ModelChoice(name, quantization, device, revision, quantize_all)
    return load_choice(choice, on_progress).at_detail(detail)


def load_choice(choice: ModelChoice, on_progress: OnProgress | None = None) -> VisionLanguageModel:
    """`load`, its arguments in one."""
    name, report = choice.name, on_progress or (lambda progress: None)
    report(LoadProgress(name, "checking"))
    outlook = check_model(choice)
    folder = fetch(outlook.files, lambda done, total: report(LoadProgress(name, "downloading", done, total)))
    # ZeroGPU takes the weights that its main thread places, and has no GPU before a lease.
    if outlook.device.type == "cuda" and on_zero_gpu():
        return _read(choice, outlook, folder, report, is_lent=True)
    return on_model_thread(_read, choice, outlook, folder, report)


def _read(
    choice: ModelChoice, outlook: ModelOutlook, folder: Path, report: OnProgress, is_lent: bool = False
) -> VisionLanguageModel:
    name = choice.name
    revision = outlook.files.folder.name if outlook.files.name else _folder_revision(folder)
    report(LoadProgress(name, "reading weights"))
    with _sentences(name):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        processor = load_processor(folder, config)
        check_files(folder)
        read: Any = partial(
            AutoModelForImageTextToText.from_pretrained,
            folder,
            config=config,
            dtype=outlook.dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
        if outlook.architecture.method is None:
            # On this device nothing of the weights is read but names and shapes; quantizing would hide wrong shapes.
            with _weights_reported(lambda done, total: None):
                check_fit(read(device_map={"": "meta"})[1], config.transformers_version)
        with _weights_reported(lambda done, total: report(LoadProgress(name, "reading weights", done, total))):
            model, info = read(
                device_map={"": "cpu" if is_lent else _reading_device(outlook.device)},
                quantization_config=_quantization_config(choice, outlook),
            )
        note = check_fit(info, config.transformers_version)
        is_stored = outlook.architecture.method is not None
        if is_stored and name == EMBEDDED:
            is_slower = choice.quantization is not None and _is_slower_in_four_bits(model)
            note = EXPANDED if is_slower else note
            if is_slower or choice.quantization is None:
                model, is_stored = model.dequantize().to(outlook.dtype), False
                vars(model).pop("_weight_conversions", None)  # of 4 bits, which it could not be saved in any more
        elif is_stored and choice.quantization:
            note = f"It was quantized before, which is left as it is. {note}".strip()
        if is_stored:  # transformers leaves what isn't quantized in the type in which it was saved
            quantized, _ = quantized_bits(model)
            for key, weights in model.named_parameters():
                if weights.is_floating_point() and key.rpartition(".")[0] not in quantized:
                    weights.data = weights.data.to(model.config.dtype)
        _pack_what_fits(model)
        note = f"{outlook.note} {note}".strip()
        if model.device.type != outlook.device.type:
            model.to(outlook.device)
        vlm = VisionLanguageModel(name, model.eval(), processor, revision, note)
        if not is_lent:
            report(LoadProgress(name, "warming up"))
            _warm_up(vlm)
    if note:
        logging.getLogger(__name__).warning("%s: %s", name, note)
    return vlm


def check_model(choice: ModelChoice, reclaimable: int = 0) -> ModelOutlook:
    """Find out whether a model can be loaded, without loading it: of the hub's files only its configuration is fetched.

    `reclaimable` are bytes on the device that will be freed before.

    Raises UserError for a device that isn't there, a model that isn't there, is gated, or out of reach, weights that
    are no safetensors, an architecture that isn't known or in which withdrawal can't mean anything, and too little
    memory.
    """
    name, quantization = choice.name, choice.quantization
    device = find_device(choice.device)
    if quantization and device.type == "cuda" and on_zero_gpu():
        raise UserError(f"On ZeroGPU weights aren't quantized, this is {quantization}: its GPU holds them in 16 bits.")
    if name == EMBEDDED and not EMBEDDED_FOLDER.is_dir():
        raise UserError(_ERRORS["not here"].format(folder=EMBEDDED_FOLDER))
    files = find_files(str(EMBEDDED_FOLDER) if name == EMBEDDED else name, choice.revision)
    check_format(name, files.folder, files.listed)
    with _sentences(name):
        config = AutoConfig.from_pretrained(files.folder, trust_remote_code=False)
        architecture = describe(config, choice.quantize_all, _reading_device(device))
    try:
        check_device(device, config)
    except UserError as error:
        if choice.device is not None:
            raise
        refuse_device(device, f"On the CPU: {error}")
        return check_model(choice, reclaimable)
    if device.type == "mps" and (quantization or (architecture.method in BITS and name != EMBEDDED)):
        raise UserError(_ERRORS["quantized on mps"].format(name=name))
    if quantization and architecture.method not in (None, quantization):
        of_both = {"method": architecture.method, "quantization": quantization}
        raise UserError(_ERRORS["quantized already"].format(name=name, **of_both))
    # The embedded model answers alike on every CPU: in bfloat16, which the newer ones have, its KL divergences are as
    # large as their rounding, and its answers take no less time.
    dtype = torch.float32 if name == EMBEDDED and device.type == "cpu" else compute_dtype(device)
    if name == EMBEDDED and quantization is None and architecture.method:
        architecture = replace(architecture, bits=8.0 * dtype.itemsize)  # it is expanded
    free = hardware.free_memory(device) + reclaimable
    kernels = KERNEL_BYTES if device.type != "cpu" else 0
    needs = {
        option: round(MEMORY_SHARE * architecture.weight_bytes(option, dtype)) + kernels
        for option in ((None, "8bit", "4bit") if architecture.method is None else (quantization,))
    }
    if needs[quantization] > free:
        smaller = [option for option, needed in needs.items() if option and needed <= free]
        advice = f"quantization {smaller[0]} ({_gigabytes(needs[smaller[0]])})" if smaller else "a smaller model"
        more = advice if device.type == "cpu" else f"{advice} or another device"
        sizes = {"needed": _gigabytes(needs[quantization]), "free": _gigabytes(free)}
        raise UserError(_ERRORS["too large"].format(name=name, device=device, advice=more, **sizes))
    note = refusals() if choice.device is None else ""
    return ModelOutlook(device, dtype, architecture, files, needs[quantization], note)


@contextmanager
def _sentences(name: str) -> Iterator[None]:
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise UserError(_ERRORS["out of memory"].format(name=name)) from error
    # Files that others wrote fail in any way there is.
    except Exception as error:
        reason = next((line for line in str(error).strip().splitlines() if line), type(error).__name__)
        advice = f"{reason} Choose another one, such as {EMBEDDED!r}."
        if isinstance(error, ImportError):
            missing = f"a package that it needs isn't installed. {reason.split('. ')[0]}."
            advice = f"{missing} Install it, or choose another model."
        raise UserError(f"The model {name!r} can't be loaded: {advice}") from error


@contextmanager
def _weights_reported(report: Callable[[int, int], None]) -> Iterator[None]:
    """Hands on transformers' own progress bar of weights that are read; older versions have no hook for it."""
    set_hook = getattr(transformers_logging, "set_tqdm_hook", None)
    if set_hook is None:
        yield
        return

    def counted(things: Iterable[Any]) -> Iterator[Any]:
        listed = list(things)
        for number, thing in enumerate(listed, start=1):
            yield thing
            report(number, len(listed))

    def bar(make: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        is_weights = options.get("desc") == "Loading weights" and arguments
        return counted(arguments[0]) if is_weights else make(*arguments, **options)

    previous = set_hook(bar)
    try:
        yield
    finally:
        set_hook(previous)


def _reading_device(device: torch.device) -> torch.device:
    """Where weights are read to: what is stored in 4 bits is expanded before it goes to Apple's GPU."""
    return torch.device("cpu") if device.type == "mps" else device


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB"


def _folder_revision(folder: Path) -> str:
    """Another one whenever a file of the model has changed; reading gigabytes of weights would take too long."""
    files = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".json"))
    states = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return f"files-{hashlib.sha256(repr(states).encode()).hexdigest()[:12]}"


def _quantization_config(choice: ModelChoice, outlook: ModelOutlook) -> BitsAndBytesConfig | None:
    if outlook.architecture.method is not None:
        return None
    skipped = [re.escape(name) for name in outlook.architecture.kept]  # transformers wants patterns
    if choice.quantization == "4bit":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=outlook.dtype,
            llm_int8_skip_modules=skipped,
        )
    return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped) if choice.quantization else None


def _is_slower_in_four_bits(model: nn.Module) -> bool:
    """Whether bitsandbytes expands the weights again for each token here: on a CPU without bfloat16 instructions.

    Read from the processor and not measured: calibrations are kept by precision, and the next start must choose the
    same.
    """
    packs = (getattr(module, "support_avx512bf16_for_cpu", False) for module in model.modules())
    return next(model.parameters()).device.type == "cpu" and not any(packs)


def _pack_what_fits(model: nn.Module) -> None:
    """On a CPU with bfloat16 instructions bitsandbytes packs 4-bit weights anew when they are first used, in blocks of
    32 rows and 64 columns. It fails on those that aren't whole blocks (SigLIP's 4,304 columns): these stay as they are.
    """
    linear: Any
    for linear in model.modules():
        packs = hasattr(linear, "support_avx512bf16_for_cpu")
        if packs and (linear.out_features % 32 or linear.in_features % 64):
            linear.support_avx512bf16_for_cpu = False


def _warm_up(vlm: VisionLanguageModel) -> None:
    """A short answer, full and withdrawn: what a first run pays for (kernels, allocator) is paid here. Raises UserError
    for a model that doesn't compute numbers."""
    inputs = vlm.prepare(Image.new("RGB", (64, 64), "gray"), "What is this?")
    for layer in (vlm.layers, max(1, vlm.layers // 2)):
        with torch.inference_mode(), withdraw(vlm.model, layer):
            answer = vlm.generate(**inputs, max_new_tokens=3, output_logits=True, return_dict_in_generate=True)
        check_finite(torch.stack(answer.logits).to(vlm.model.dtype))
