"""How a trained model is stored: the decoder layers in 4 bits, as NF4 with doubly quantized constants, the others in
bfloat16."""

import tempfile
from typing import Any

import torch
from transformers import BitsAndBytesConfig, LlavaForConditionalGeneration

from vtw_demo.embedded.training.model import load


def store(options: Any) -> None:
    model, processor, _ = load(options.runs, options.of)
    bits = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
        llm_int8_skip_modules=["model.vision_tower", "model.multi_modal_projector", "lm_head"],
    )
    with tempfile.TemporaryDirectory() as folder:
        model.bfloat16().save_pretrained(folder)
        quantized = LlavaForConditionalGeneration.from_pretrained(
            folder, dtype=torch.bfloat16, quantization_config=bits, device_map=options.device
        )
    for saved in (quantized, processor):
        saved.save_pretrained(options.out)
    print(f"{sum(path.stat().st_size for path in options.out.iterdir()) / 1e6:.1f} MB in {options.out}")
