"""The one exception that bitnet-core raises for what a user can fix."""


class CoreError(Exception):
    """A message for people: what is wrong, where, and the fix. Shown without a traceback."""
