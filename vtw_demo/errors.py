"""The one kind of error that is meant for people."""


class UserError(ValueError):
    """What was asked for can't be done: its message is one sentence or a few that say what was wrong, with the value,
    and what to do instead. Whatever else is raised is a fault of ours, or of what we use, and isn't shown as it is.
    """
