"""Work on the model's numbers beside the event loop, which must not wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ..errors import GptossError, RequestError
from .errors import ApiError
from .service import api_error

#: Of their own: an edit may wait for minutes, and whoever renders prompts must not wait with it.
_THREADS = ThreadPoolExecutor(4, thread_name_prefix="gptoss-native internal")


async def done(work: Callable[[], Any]) -> Any:
    """The result of `work`, done beside the event loop; its errors as the API tells them."""
    try:
        return await asyncio.get_running_loop().run_in_executor(_THREADS, work)
    except KeyError as error:
        raise ApiError(404, str(error.args[0]), param="name") from None
    except GptossError as error:
        if isinstance(error, RequestError):
            raise api_error(error) from None
        raise ApiError(409, str(error)) from None
