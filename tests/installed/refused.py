"""What both programs of Python check refusals with."""

from collections.abc import Callable


def refused(kind: type[Exception], words: str, call: Callable[[], object]) -> None:
    """Fails unless the call raises that kind of exception, with these words in its message."""
    try:
        call()
    except kind as error:
        assert words in str(error), error
    else:
        raise AssertionError(f"no {kind.__name__}: {words}")
