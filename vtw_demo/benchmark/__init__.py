"""What withdrawal saves and what this library's own passes cost, measured in interleaved runs."""
