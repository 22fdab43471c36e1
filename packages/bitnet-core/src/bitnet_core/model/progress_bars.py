"""transformers' own bars ("Loading weights") are kept away: they would mix with a run's, and with an answer."""

from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Off inside, and afterwards as they were. Also for a function: ``@no_progress_bars()``."""
    were_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if were_on:
            logging.enable_progress_bar()
