"""What a whole benchmark runs, one `bench` command after the other."""

from __future__ import annotations

SUITES: dict[str, tuple[tuple[str, ...], ...]] = {
    # A few minutes on one GPU of 80 GB; what a smaller one can't hold is said and left out.
    "gpu": (
        ("--shape", "llava-1.5-7b", "--quantization", "4bit", "--compare"),
        ("--shape", "llava-1.5-7b", "--quantization", "4bit", "--batch", "8"),
        ("--shape", "llava-1.5-7b", "--compare"),
        ("--shape", "llava-1.5-7b", "--batch", "8"),
        ("--shape", "llava-next-7b", "--compare"),
        ("--shape", "llava-next-7b", "--batch", "8"),
        ("--shape", "llava-next-7b", "--quantization", "4bit"),
        # Beside FastV's published gain in 4 bits: 13B, 75 % of the visual tokens dropped, 20 % less time to the first
        # token (arXiv 2403.06764, section 5).
        ("--shape", "llava-1.5-13b", "--quantization", "4bit"),
    ),
    # A quarter of an hour on two cores.
    "cpu": (
        ("--shape", "small", "--compare"),
        ("--shape", "small", "--quantization", "4bit", "--rounds", "2"),
        ("--shape", "small-2880", "--layers", "12", "--rounds", "3", "--new-tokens", "12", "--no-overheads"),
        ("--model", "embedded", "--start"),
    ),
}


def file_name(arguments: tuple[str, ...]) -> str:
    """Of a command's results: "llava-1.5-7b-4bit-batch-8"."""
    named = dict(zip(arguments[::2], arguments[1::2], strict=False))
    batch = f"-batch-{named['--batch']}" if "--batch" in named else ""
    quantization = f"-{named['--quantization']}" if "--quantization" in named else ""
    return f"{named.get('--shape') or named['--model']}{quantization}{batch}"
