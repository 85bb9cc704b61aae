"""How an export goes wrong."""


class Problem(Exception):
    """Nothing can be exported; the text says to the user why."""


class Conflict(Problem):
    """The checkout has, at a path of ours or under a name of ours, something else."""


class Missing(Exception):
    """The checkout lacks what a change would be made to; that change is left out."""
