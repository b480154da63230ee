"""The exceptions of this package. Every message names what was wrong, both values and the fix."""


class GptossError(ValueError):
    """Anything a user can mend: a bad file, setting or request. The native code raises it too."""


class CheckpointError(GptossError):
    """A checkpoint, its config or its tokenizer is missing, malformed or unsupported."""


class RequestError(GptossError):
    """A prompt, message list or sampling parameter that cannot be served as given."""


class OverloadedError(RequestError):
    """Too many requests wait already; the same request may be taken later."""
