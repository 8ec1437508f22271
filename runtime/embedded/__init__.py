"""Real servers from wheels, run as child processes for the embedded stack and the tests."""


class EmbeddedServerError(Exception):
    """An embedded server cannot be started; the message says what to do about it."""
