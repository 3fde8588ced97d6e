"""Whether a device computes what the CPU does: a few random layers of the model's kind tell, before it is loaded.

torch's kernels for Apple's GPU were wrong in several releases without a word, so that answers were plausible and false:
https://github.com/pytorch/pytorch/issues/174861, /195910 (causal attention saw up to three later tokens in 16 bits),
/193487 (products).
"""

import copy
from typing import Any

import torch
from transformers import AutoModel, LlamaConfig, PreTrainedConfig

from vtw_demo.errors import UserError
from vtw_demo.files import data_beside
from vtw_demo.models.devices import compute_dtype, on_zero_gpu

# What is wrong elsewhere is off by tenths at least, in standard deviations of the logits; 16 bits by hundredths.
ALLOWED = {torch.float32: 0.01, torch.bfloat16: 0.3}
# Attention's kernels differ for prompts shorter than this.
TOKENS = 70
VOCABULARY = 256
# The width of the layers' inside, and thus most of their weights, is cut to this.
INTERMEDIATE = 256
# By a device's type, which release of torch mends what is known.
_MENDED = data_beside(__file__, "mended_devices.json")
_right: set[tuple[str, str]] = set()


def check_device(device: torch.device, config: PreTrainedConfig) -> None:
    """Hold the logits of a tiny prompt on a device against the CPU's, in float32 and in the type that it computes in.
    Once for each kind of model; ZeroGPU has no device before a lease. Raises UserError for a device that is wrong."""
    text = config.get_text_config()
    asked = (device.type, text.model_type)
    if device.type == "cpu" or asked in _right or on_zero_gpu():
        return
    decoder, expected = random_layers(text)
    for dtype in dict.fromkeys((torch.float32, compute_dtype(device))):
        found = logits(decoder, device, dtype)
        error = ((found - expected).abs().max() / expected.std()).item()
        if not error <= ALLOWED[dtype]:
            raise UserError(
                f"torch {torch.__version__} computes something else on {device} than on the CPU: in "
                f"{str(dtype).removeprefix('torch.')}, logits are off by {error:.2g} of their standard deviation. "
                f"{_MENDED.get(device.type, _MENDED['other'])}"
            )
    _right.add(asked)


def random_layers(text: PreTrainedConfig) -> tuple[Any, torch.Tensor]:
    """A decoder of that kind, always with the same random weights, of at least two layers and one of each type; and its
    logits on the CPU. A plain decoder where such a one can't be made of the configuration alone."""
    cut = copy.deepcopy(text)
    types = list(dict.fromkeys(getattr(text, "layer_types", None) or ["full_attention"]))
    cut.num_hidden_layers = max(2, len(types))
    if getattr(text, "layer_types", None):
        cut.layer_types = (2 * types)[: cut.num_hidden_layers]
    for name in ("intermediate_size", "moe_intermediate_size"):
        if isinstance(width := getattr(text, name, None), int):
            setattr(cut, name, min(width, INTERMEDIATE))
    cut.vocab_size, cut.pad_token_id = VOCABULARY, None
    try:
        return _with_logits(cut)
    except Exception:  # others' code, on what it wasn't made for
        return _with_logits(
            LlamaConfig(vocab_size=VOCABULARY, hidden_size=512, num_hidden_layers=2, num_attention_heads=8)
        )


def _with_logits(config: PreTrainedConfig) -> tuple[Any, torch.Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        decoder = AutoModel.from_config(config, dtype=torch.float32).eval()
    return decoder, logits(decoder, torch.device("cpu"), torch.float32)


def logits(decoder: Any, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Of a tiny prompt, on the CPU in float32; shape (tokens, vocabulary)."""
    decoder = copy.deepcopy(decoder).to(device, dtype)
    tokens = torch.arange(TOKENS, device=device)[None]
    with torch.inference_mode():
        states = decoder(input_ids=tokens, use_cache=False).last_hidden_state[0]
        return (states @ decoder.get_input_embeddings().weight.T).float().cpu()
