"""One question answered twice, timed, and what explains it; the withdrawal layer for a model."""
