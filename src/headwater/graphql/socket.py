"""One socket that speaks graphql-transport-ws, from its acceptance until it is closed."""

# The states of a socket:
#
#   connecting     `GraphQLSocket` checks origin and sub-protocol        -> awaiting init, or refused
#   awaiting init  a timeout runs; a ping is answered                    -> admitting, on connection_init
#   admitting      the admit hook runs under the same timeout            -> acknowledged, or closing if it refuses
#   acknowledged   subscribe starts an operation, complete cancels it    -> closing
#   closing        nothing is read; only the close frame is sent; the operations are cancelled and awaited
#
# Every state can go to closing: if the client leaves, breaks the protocol or does not read, or if the server closes.
#
# Reading never waits for sending. Operations and replies send through one lock. A client that does not read therefore
# delays its own operations (their back pressure), while its complete and ping messages are still handled.

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from headwater.errors import PublicError
from headwater.graphql.context import ContextFactory
from headwater.graphql.engine import Engine
from headwater.graphql.frames import (
    ACKNOWLEDGEMENT,
    CloseCode,
    Violation,
    decoded,
    frame,
    id_of,
    payload_of,
    pong,
    request_of,
    too_many,
)
from headwater.graphql.request import GraphQLRequest
from headwater.graphql.result import Result, failed
from headwater.ids import new_id
from headwater.logs import handling

logger = logging.getLogger(__name__)

# Decides about a connection_init by its payload. Returns the seconds for which the client is admitted (None: as long as
# the socket is open). Refuses by raising a PublicError, whose message becomes the close reason.
Admit = Callable[[WebSocket, Mapping[str, object] | None], Awaitable[float | None]]

# Replies that wait until the client reads. A client that causes more sends without reading.
MAX_WAITING_REPLIES = 100


class State(Enum):
    AWAITING_INIT = auto()
    ADMITTING = auto()
    ACKNOWLEDGED = auto()
    CLOSING = auto()


@dataclass(frozen=True, slots=True)
class SocketLimits:
    """Limits of one socket. Timeouts are in seconds.

    close_timeout: for sending the close frame. cleanup_timeout: for the operations to end after it. operations: how
    many may be active at a time.
    """

    init_timeout: float
    send_timeout: float
    operations: int
    close_timeout: float
    cleanup_timeout: float = 10.0


class Operation:
    """An operation of a socket, from subscribe to its last message. finishing: the last message is being sent."""

    def __init__(self, operation_id: str) -> None:
        self.id = operation_id
        self.finishing = False
        self.task: asyncio.Task[None] | None = None


class Socket:
    """Owns every task of its websocket. `run` returns when it is closed and all tasks have ended."""

    def __init__(
        self, websocket: WebSocket, engine: Engine, context: ContextFactory, admit: Admit | None, limits: SocketLimits
    ) -> None:
        self.websocket = websocket
        self.ended = asyncio.Event()
        self._engine = engine
        self._context = context
        self._admit_hook = admit
        self._limits = limits
        self._state = State.AWAITING_INIT
        self._init_payload: Mapping[str, object] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._active: dict[str, Operation] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._replies: asyncio.Queue[str] = asyncio.Queue(MAX_WAITING_REPLIES)
        self._sending = asyncio.Lock()
        self._closing = asyncio.Event()
        self._close_frame: tuple[int, str] | None = None

    async def run(self) -> None:
        """Serve an accepted websocket until either side closes it."""
        try:
            self._close_in(self._limits.init_timeout, CloseCode.INIT_TIMEOUT, "Connection initialisation timeout")
            self._spawn(self._read())
            self._spawn(self._send_replies())
            await self._closing.wait()
        finally:
            self.close(CloseCode.GOING_AWAY, "Going away")  # No effect unless this task was cancelled.
            await self._end()
            self.ended.set()

    def close(self, code: int, reason: str) -> None:
        """Start closing. The first code and reason are kept."""
        if self._state is not State.CLOSING:
            self._close_frame = (code, _short(reason))
            self._stop()

    def _stop(self) -> None:
        self._state = State.CLOSING
        self._closing.set()

    async def _end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None  # it leads back to this socket
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        await self._send_close()
        if tasks:
            _, stuck = await asyncio.wait(tasks, timeout=self._limits.cleanup_timeout)
            if stuck:
                seconds = self._limits.cleanup_timeout
                logger.error("%d operations did not end within %g s after their socket was closed", len(stuck), seconds)

    async def _send_close(self) -> None:
        if self._close_frame is None:
            return
        code, reason = self._close_frame
        # Best effort: a client that left or does not read receives no close frame. The latter sees 1006.
        with suppress(TimeoutError, WebSocketDisconnect, RuntimeError, OSError):
            async with asyncio.timeout(self._limits.close_timeout), self._sending:
                await self.websocket.close(code, reason)

    def _close_in(self, seconds: float, code: int, reason: str) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(seconds, self.close, code, reason)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._notice_end)
        return task

    def _notice_end(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("A task of a socket failed", exc_info=error)
            self.close(CloseCode.INTERNAL_ERROR, "Internal error")

    # -- reading: one function for each type of message; none of them waits

    async def _read(self) -> None:
        while self._state is not State.CLOSING:
            message = await self.websocket.receive()
            if message["type"] == "websocket.disconnect":
                self._stop()
                return
            try:
                self._receive(message.get("text"))
            except Violation as violation:
                self.close(violation.code, str(violation))
            await asyncio.sleep(0)  # A burst of messages must not delay the replies.

    def _receive(self, text: str | None) -> None:
        message = decoded(text)
        match message.get("type"):
            case "connection_init":
                self._on_init(message)
            case "ping":
                self._on_ping(message)
            case "pong":
                payload_of(message)
            case "subscribe":
                self._on_subscribe(message)
            case "complete":
                self._on_complete(message)
            case _:
                raise Violation(CloseCode.BAD_REQUEST, 'Invalid message: "type" is missing or unknown')

    def _on_init(self, message: Mapping[str, object]) -> None:
        payload = payload_of(message)
        if self._state is not State.AWAITING_INIT:
            raise Violation(CloseCode.TOO_MANY_INITS, "Too many initialisation requests")
        self._state = State.ADMITTING
        self._init_payload = payload
        self._spawn(self._admit(payload))

    def _on_ping(self, message: Mapping[str, object]) -> None:
        payload = payload_of(message)
        self._reply(pong(payload))

    def _on_subscribe(self, message: Mapping[str, object]) -> None:
        operation_id, request = id_of(message), request_of(message)
        if self._state is not State.ACKNOWLEDGED:
            raise Violation(CloseCode.UNAUTHORIZED, "Unauthorized")
        active = self._active.get(operation_id)
        if active is not None and not active.finishing:
            raise Violation(CloseCode.SUBSCRIBER_EXISTS, f"Subscriber for {operation_id} already exists")
        if self._is_full():
            self._reply(too_many(operation_id, self._limits.operations))
        else:
            self._start(operation_id, request)

    def _on_complete(self, message: Mapping[str, object]) -> None:
        operation = self._active.pop(id_of(message), None)
        if operation is not None and operation.task is not None:
            operation.task.cancel()

    def _is_full(self) -> bool:
        # Ended operations may still be cleaning up. They count half: without a bound, a client could start and end
        # operations faster than they clean up.
        limit = self._limits.operations
        return len(self._active) >= limit or len(self._tasks) >= 2 * limit + 2

    # -- admission

    async def _admit(self, payload: Mapping[str, object] | None) -> None:
        try:
            lasts = await self._admit_hook(self.websocket, payload) if self._admit_hook else None
        except PublicError as error:
            self.close(CloseCode.FORBIDDEN, str(error))
            return
        if self._state is State.ADMITTING:
            self._acknowledge(lasts)

    def _acknowledge(self, lasts: float | None) -> None:
        self._state = State.ACKNOWLEDGED
        if self._timer is not None:
            self._timer.cancel()
        if lasts is not None:
            # After 4403 the client reconnects and asks its application for a fresh token.
            self._close_in(lasts, CloseCode.FORBIDDEN, "Admission expired")
        self._reply(ACKNOWLEDGEMENT)

    # -- operations: one task each

    def _start(self, operation_id: str, request: GraphQLRequest) -> None:
        operation = Operation(operation_id)
        self._active[operation_id] = operation
        operation.task = self._spawn(self._operate(operation, request))

    async def _operate(self, operation: Operation, request: GraphQLRequest) -> None:
        try:
            with handling(new_id()):
                outcome = await self._begin(request)
                if isinstance(outcome, Result):
                    await self._answer(operation, outcome)
                else:
                    await self._relay(operation, outcome)
        finally:
            if self._is_current(operation):
                del self._active[operation.id]
            operation.task = None  # its traceback leads back to the operation, a cycle for the garbage collector

    async def _begin(self, request: GraphQLRequest) -> AsyncGenerator[Result, None] | Result:
        try:
            context = self._context(self.websocket, self._init_payload)
        except Exception as error:  # noqa: BLE001 - masked like a resolver's fault, and the socket goes on
            return failed(error)
        return await self._engine.subscribe(request, context)

    async def _answer(self, operation: Operation, result: Result) -> None:
        if await self._deliver(operation, result):
            await self._finish(operation, frame("complete", operation.id))

    async def _relay(self, operation: Operation, results: AsyncGenerator[Result, None]) -> None:
        async with aclosing(results):
            async for result in results:
                if not await self._deliver(operation, result):
                    return
                # If source and client are both fast, nothing here waits, and other tasks would not run.
                await asyncio.sleep(0)
        await self._finish(operation, frame("complete", operation.id))

    async def _deliver(self, operation: Operation, result: Result) -> bool:
        """Send a result. Returns false if it was the last message of the operation."""
        if result.executed:
            return await self._send(frame("next", operation.id, result.json), operation)
        await self._finish(operation, frame("error", operation.id, result.errors_json))
        return False

    async def _finish(self, operation: Operation, frame: str) -> None:
        await self._send(frame, operation, last=True)

    def _is_current(self, operation: Operation) -> bool:
        """False after the client's complete, and if its id belongs to a later operation."""
        return self._active.get(operation.id) is operation

    # -- sending: one message at a time

    def _reply(self, text: str) -> None:
        try:
            self._replies.put_nowait(text)
        except asyncio.QueueFull:
            self.close(CloseCode.SLOW_CONSUMER, "Slow consumer")

    async def _send_replies(self) -> None:
        while await self._send(await self._replies.get()):
            pass

    async def _send(self, text: str, operation: Operation | None = None, *, last: bool = False) -> bool:
        """Send under the lock. Returns false if the socket is closing or the operation has ended."""
        async with self._sending:
            if self._state is State.CLOSING or (operation is not None and not self._is_current(operation)):
                return False
            if operation is not None:
                # The client may reuse the id as soon as it has read the message, which can be before `send` returns.
                operation.finishing = last
            return await self._transmit(text)

    async def _transmit(self, text: str) -> bool:
        try:
            async with asyncio.timeout(self._limits.send_timeout):
                await self.websocket.send_text(text)
        except TimeoutError:
            self.close(CloseCode.SLOW_CONSUMER, "Slow consumer")
            return False
        except (WebSocketDisconnect, RuntimeError, OSError):
            self._stop()  # The client is gone.
            return False
        return True


def _short(reason: str) -> str:
    """Cut a close reason to the 123 bytes that a close frame can hold."""
    return reason.encode()[:123].decode(errors="ignore")
