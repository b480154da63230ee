"""Errors as OpenAI's API tells them."""

from __future__ import annotations

from typing import Any


class ApiError(Exception):
    """What a client gets instead of an answer; `param` names the field that is wrong."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.kind = status, message, kind
        self.param, self.code, self.headers = param, code, headers or {}

    def renamed(self, names: dict[str, str]) -> ApiError:
        """The same for an API whose fields have other names, where the message begins with one."""
        for ours, theirs in names.items():
            if self.message.startswith(ours):
                param = self.param and self.param.replace(ours, theirs, 1)
                message = theirs + self.message.removeprefix(ours)
                found = ApiError(self.status, message, kind=self.kind, param=param, code=self.code)
                found.headers = self.headers
                return found
        return self

    def body(self) -> dict[str, Any]:
        """The JSON of the response."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}
