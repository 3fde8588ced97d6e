"""The method: what takes tokens out of a decoder's sequence. It needs torch and transformers alone."""
