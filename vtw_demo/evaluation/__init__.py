"""Is quality kept? Accuracy and agreement on data, with withdrawal and without, and with what else one might do."""
