"""The Hugging Face Space of the demo: its description, what would be sent to it, and sending it."""
