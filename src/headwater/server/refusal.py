"""Refuses bytes that are no acceptable request, after the answers that are due before, and closes the connection."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from typing import Any

import msgspec

from headwater.server.slow_reader import DrainedHTTP


class Refusing(DrainedHTTP):
    """The HTTP protocol of one client, with refusals that no client can take for the answer to another request.

    uvicorn writes a refusal at once: before the answers to earlier requests of the connection, or after the answer to
    the very request that it refuses.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._awaited = True  # the next bytes belong to a head, not to a body
        self._refused: Callable[[], None] | None = None

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._awaited = False
        self.headers = []  # for the trailers, which uvicorn would add to the headers of the request

    def on_message_complete(self) -> None:
        self._awaited = True
        super().on_message_complete()

    def on_response_complete(self) -> None:
        last = not self.pipeline
        super().on_response_complete()
        if last and self._refused is not None and not self.transport.is_closing():
            self._refused()

    def send_400_response(self, msg: str) -> None:
        self._refuse(partial(super().send_400_response, msg))

    def refuse(self, status: HTTPStatus, code: str, message: str) -> None:
        """Answer with an error, when it is its turn, and close. All that the client sends after it is ignored."""
        self._refuse(partial(self._end, error_of(status, code, message)))

    @property
    def _answering(self) -> bool:
        # `cycle` is None before the first request, contrary to uvicorn's annotation.
        return self.cycle is not None and not self.cycle.response_complete  # type: ignore[redundant-expr]

    def _refuse(self, refused: Callable[[], None]) -> None:
        self._refused = refused
        if self._awaited:
            if not self._answering:
                refused()
        elif self.pipeline:
            self.pipeline.popleft()  # the newest request: its body is what is refused, and others are answered before
        elif self.cycle.response_started:
            self.transport.close()
        else:
            self.cycle.disconnected = True  # so that the application does not answer, too
            self.cycle.message_event.set()
            refused()

    def _end(self, answer: bytes) -> None:
        self.transport.write(answer)
        self.transport.close()


def error_of(status: HTTPStatus, code: str, message: str) -> bytes:
    """Return a whole response with an error in the form of GraphQL, which says that the connection is closed."""
    body = msgspec.json.encode({"errors": [{"message": message, "extensions": {"code": code}}]})
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json; charset=utf-8\r\n"
        f"content-length: {len(body)}\r\ncache-control: no-store\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + body
