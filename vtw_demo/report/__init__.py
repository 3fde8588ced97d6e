"""A comparison with all that explains it, to look at and to take away: plots, one JSON, one HTML file."""
