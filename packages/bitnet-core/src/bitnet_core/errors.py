"""The one exception that bitnet-core raises for what a user can fix."""


class CoreError(Exception):
    """A message for people: `why` says what is wrong and where, `fix` what to do. Shown without a traceback."""

    def __init__(self, why: str, fix: str = "") -> None:
        super().__init__(f"{why}  → {fix}" if fix else why)
        self.why, self.fix = why, fix
