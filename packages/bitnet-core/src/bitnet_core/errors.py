"""The one exception that bitnet-core raises for what a user can fix."""


class CoreError(Exception):
    """A message for people: what is wrong and where (`why`), and what to do about it. Shown without a traceback."""

    def __init__(self, why: str, fix: str = "") -> None:
        super().__init__(f"{why}  → {fix}" if fix else why)
