"""The tabs under the answers, each with its controls, their events and what these call."""
