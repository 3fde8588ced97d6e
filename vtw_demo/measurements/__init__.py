"""What is measured of a prompt: attention, divergence at every K, the logit lens, probabilities, FLOPs."""
