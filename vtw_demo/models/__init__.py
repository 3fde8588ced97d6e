"""Vision-language models: which there are, how they are loaded, and what they are asked."""
