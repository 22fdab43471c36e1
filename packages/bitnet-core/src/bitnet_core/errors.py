"""The one exception that bitnet-core raises for what a user can fix."""


class CoreError(Exception):
    """A message for people, shown without a traceback.

    why: what is wrong, and where. fix: what to do about it, as an imperative; empty where nothing is known to help.
    """

    def __init__(self, why: str, fix: str = "") -> None:
        super().__init__(why, fix)  # both, so that it can be pickled
        self.why = why
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.why}  → {self.fix}" if self.fix else self.why
