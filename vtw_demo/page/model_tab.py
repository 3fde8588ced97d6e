"""The tab in which another model is chosen, and what one should know of each before."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

import gradio as gr

from vtw_demo.models.loading import EMBEDDED, QUANTIZATIONS
from vtw_demo.models.registry import KNOWN_MODELS, NO_QUANTIZATION, StartingLayer, find_known_model

MODEL = "model"
UNKNOWN = (
    "This one is not among the models that are known to work. Any other vision-language model of the Hugging Face hub "
    "can be tried by its id, if its decoder takes visual tokens in its sequence."
)


@dataclass(frozen=True)
class ModelTab:
    """Its controls. `facts` tell of the model that is chosen, not of the one that is loaded."""

    name: gr.Dropdown
    quantization: gr.Radio
    load: gr.Button
    facts: gr.HTML


def lay_out_model_tab(loaded: str) -> ModelTab:
    """Make the tab, inside a `gr.Tabs`, with the model chosen that is loaded."""
    others = [(model.title, model.name) for model in KNOWN_MODELS]
    own = [] if find_known_model(loaded) or loaded == EMBEDDED else [(loaded, loaded)]
    with gr.Tab("Model", id=MODEL):
        with gr.Row(elem_classes="controls"):
            name = gr.Dropdown(
                [("Embedded", EMBEDDED), *own, *others],
                value=loaded,
                label="Model",
                info="One of the list, or any id of the Hugging Face hub. It is switched for all visitors.",
                allow_custom_value=True,
                min_width=360,
                elem_id="model-name",
            )
            quantization = gr.Radio(
                [("none", NO_QUANTIZATION), *((bits.replace("bit", " bits"), bits) for bits in QUANTIZATIONS)],
                value=NO_QUANTIZATION,
                label="Quantization",
                elem_id="quantization",
            )
            load = gr.Button("Load", size="sm", min_width=80, elem_id="load-model")
        facts = gr.HTML(model_facts(loaded), padding=False, elem_id="model-facts")
    return ModelTab(name, quantization, load, facts)


def model_facts(name: str | None) -> str:
    """What is known of a model, as HTML."""
    if name == EMBEDDED:
        return '<p class="note">The small model that ships with the demo: it runs on any CPU.</p>'
    known = find_known_model(name or "")
    if known is None:
        return f'<p class="note">{escape(UNKNOWN)}</p>'
    fewest, most = known.visual_tokens
    tokens = f"{fewest:,}" if fewest == most else f"{fewest:,} to {most:,}"
    facts = [
        f"{known.parameters / 1e9:.2f} billion parameters",
        f"{known.memory_4bit / 1e9:.1f} GB of weights in 4 bits",
        f"{known.layers} decoder layers",
        f"{tokens} visual tokens per picture",
    ]
    if known.clip_tokens is not None:
        facts.append(f"takes clips, up to {known.clip_tokens:,} visual tokens")
    listed = "".join(f"<span>{escape(fact)}</span>" for fact in facts)
    gated = " The hub wants its terms accepted first: see its page there." if known.gated else ""
    starting = f"{StartingLayer(known.layer, known.layer_source)}{gated}"
    return f'<div class="facts">{listed}</div><p class="note">{escape(starting)}</p>'
