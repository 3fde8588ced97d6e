"""Plots: pure functions from plain data to plotly figures, and a sentence that reads each."""
