"""How the embedded model was trained; nothing else needs it."""
