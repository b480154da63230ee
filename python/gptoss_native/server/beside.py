"""Work on the model's numbers beside the event loop, which must not wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from math import isfinite
from typing import Any

from ..errors import GptossError, RequestError
from .errors import ApiError
from .service import api_error

#: Of their own: whoever renders prompts must not wait for them.
_THREADS = ThreadPoolExecutor(4, thread_name_prefix="gptoss-native internal")


async def done(work: Callable[[], Any]) -> Any:
    """The result of `work`, done beside the event loop; its errors as the API tells them."""
    with told():
        return await asyncio.get_running_loop().run_in_executor(_THREADS, work)


async def waited(work: Callable[[], Any]) -> Any:
    """The same of work that may wait for minutes, for what others do: on a thread of its own."""
    thread = ThreadPoolExecutor(1, thread_name_prefix="gptoss-native internal")
    try:
        with told():
            return await asyncio.get_running_loop().run_in_executor(thread, work)
    finally:
        thread.shutdown(wait=False)


@contextmanager
def told() -> Iterator[None]:
    """Errors about the model's numbers, as the API tells them."""
    try:
        yield
    except ApiError:
        raise
    except KeyError as error:
        raise ApiError(404, str(error.args[0]), param="name") from None
    except GptossError as error:
        if isinstance(error, RequestError):
            raise api_error(error) from None
        raise ApiError(409, str(error)) from None


def finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: null in their place, in lists and objects too."""
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, list):
        return [finite(each) for each in value]
    if isinstance(value, dict):
        return {name: finite(each) for name, each in value.items()}
    return value
