"""The field's terms, each explained in one sentence, and what the page shows, in a minute's reading."""

from __future__ import annotations

from html import escape

TERMS = {
    "withdrawal layer K": "The decoder layer before which the visual tokens are taken out, counted from 0; at K = L, "
    "the number of layers, none are.",
    "visual tokens": "The picture as the decoder gets it: vectors that stand in the sequence as words do, often "
    "hundreds of them.",
    "prefill": "The pass in which the decoder reads the whole prompt, picture and question, and finds the answer's "
    "first token.",
    "decode": "What follows the prefill: the rest of the answer, token by token, each in a pass of its own.",
    "KV cache": "The keys and values of all tokens so far, kept in every layer so that decoding needn't compute them "
    "again.",
    "KL divergence": "How far withdrawal moves the probabilities of the next token: 0 where they stay the same.",
    "FLOPs": "Floating-point operations, additions and multiplications: how much computing a pass takes, whatever the "
    "machine.",
    "attention mass": "The attention that a token gives to all tokens of a segment together, the picture's for one; "
    "the mean over heads.",
    "share of attention": "The part of a token's attention that a segment gets; in each layer the shares make 100 %.",
    "attention sink": "A token, often the first, that gets much attention whatever it says.",
    "logit lens": "What the model would say if it ended after a layer: that layer's hidden states through the model's "
    "own output head.",
    "cosine distance": "How far two vectors differ in direction: 0 where they point the same way, 1 at a right angle, "
    "2 where they are opposite.",
    "teacher forcing": "The model is given an answer and asked, at each of its tokens, what it would have said there.",
    "quantization": "Weights are held in fewer bits, which saves memory and rounds them.",
    "4-bit": "Most weights are held in 4 bits where 16 are usual, which saves memory and rounds them.",
    "calibrated": "K was chosen from the KL divergence at every K, measured on a few samples.",
    "image encoding": "The picture is made into visual tokens, before the decoder; withdrawal leaves this as it is.",
    "median": "The middle of the measured times, as many above it as below; one slow run hardly moves it.",
    "interleaved": "Both runs take turns, so that a machine that slows down slows down both.",
}


def term(name: str, shown: str | None = None) -> str:
    """One of `TERMS`, as `shown` or by its name, with its sentence on hover, focus and tap: escaped HTML."""
    said = escape(f"{name}: {TERMS[name]}")
    # A description, not a label: a label would name the span as the page's own fields are named.
    return (
        f'<span class="term explained" tabindex="0" role="term" aria-description="{said}" data-explained="{said}">'
        f"{escape(name if shown is None else shown)}</span>"
    )


WHAT_AM_I_LOOKING_AT = (
    f"<p>A vision-language model makes {term('visual tokens')} of a picture and reads them with your question. Its "
    "decoder takes all of them through every layer. Visual Tokens Withdrawal takes them out before the "
    f"{term('withdrawal layer K')}: from there on layers see text only, which is less work.</p>"
    "<p>Your question is answered twice, first with every layer seeing the picture, then with the tokens withdrawn. "
    "The same answer means that this question didn't need them from K on. Where K is too early, the answer may change. "
    f"The slider sets K; the line beside it shows how far the next token moves, its {term('KL divergence')}.</p>"
    f"<ul><li>Attention: what {term('share of attention', 'share')} the picture gets in each layer.</li>"
    "<li>Where it looks: which parts of the picture get it.</li>"
    "<li>Migration: in which layers the text takes up what the picture holds.</li>"
    "<li>Staircase: what is left in each layer of tokens, computing and memory; the step is at K.</li>"
    f"<li>Timing: {term('image encoding')} is the same work in both runs, {term('prefill')} is less when withdrawn. "
    "With a small model or a short prompt the clock may not show it.</li></ul>"
)
