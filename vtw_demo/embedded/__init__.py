"""The model that ships with the demo: its pictures, its questions, its training."""
