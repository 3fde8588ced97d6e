"""What the page withstands: the real server under many visitors at once, and over many comparisons."""
