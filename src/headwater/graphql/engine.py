"""Runs GraphQL operations for every transport. Documents are parsed and validated once."""

import time
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Mapping, Sequence
from contextlib import aclosing
from inspect import isawaitable
from typing import Any, TypeVar

import strawberry
from graphql import ExecutionResult, GraphQLError, OperationType
from graphql.execution import (
    Executor,
    create_source_event_stream,
    execute_root_selection_set,
    execute_subscription_event,
    map_source_to_response_event,
)
from graphql.pyutils import AwaitableOrValue
from strawberry.execution import optimized_is_awaitable

from headwater.graphql.documents import Document, Documents, Limits
from headwater.graphql.request import GraphQLRequest
from headwater.graphql.result import Result, executed, failed, refused, unresolved
from headwater.graphql.validation import Guard

S = TypeVar("S")

# All variables are coerced before any resolver runs, without a pause: a body of 1 MiB would block the event loop for
# two seconds. This many values block it for a fifth of a second.
MAX_VARIABLE_VALUES = 10_000

# Called for each operation when its result is there or its stream is open, with its kind, the outcome (`ok`, `errors`
# or `refused`) and the seconds that it took.
Observe = Callable[[str, str, float], None]


class Engine:
    """Executes the operations of one schema.

    guards: checked before any validation rule runs. max_source_length: characters of a document. max_tokens: tokens of
    a document. max_documents: how many documents are cached. observe: called for each operation.

    The engine builds Strawberry's executor and drives it through functions of graphql-core. `Schema.execute` would
    parse and validate each time, log errors of clients as errors, and not distinguish refused variables from a null
    root. Schema extensions and operation directives need that pipeline, so a schema that has them is refused.
    """

    def __init__(
        self,
        schema: strawberry.Schema,
        *,
        guards: Sequence[Guard] = (),
        max_source_length: int = 64 * 1024,
        max_tokens: int = 5_000,
        max_documents: int = 1_000,
        observe: Observe | None = None,
    ) -> None:
        if schema.get_extensions():
            raise ValueError(
                "The engine does not run Strawberry schema extensions or operation directives; remove them."
            )
        if schema.config.enable_experimental_incremental_execution:
            raise ValueError(
                "The engine does not support @defer and @stream; switch enable_experimental_incremental_execution off."
            )
        self._schema = schema
        self._observe = observe
        self._hide_suggestions = schema.config.disable_field_suggestions
        self._documents = Documents(
            schema._schema,
            Limits(max_source_length, max_tokens, max_documents),
            guards=guards,
            hide_suggestions=self._hide_suggestions,
        )

    def kind(self, request: GraphQLRequest) -> OperationType | None:
        """Return the kind of the operation without running it; None if the request will be refused."""
        document = self._documents.get(request.query)
        if isinstance(document, Result):
            return None
        operation = document.operation(request.operation_name)
        return operation.operation if operation else None

    async def execute(self, request: GraphQLRequest, context: object) -> Result:
        """Run a query or a mutation and return its result. Errors of the client and of resolvers are in the result."""
        started = time.perf_counter()
        executor = self._executor(request, context)
        if isinstance(executor, Result):
            return self._observed(None, executor, started)
        if executor.operation.operation is OperationType.SUBSCRIPTION:
            raise ValueError("execute() runs queries and mutations: use subscribe().")
        return self._observed(executor, await _run(executor), started)

    async def subscribe(self, request: GraphQLRequest, context: object) -> AsyncGenerator[Result, None] | Result:
        """Run an operation of any kind. Returns a stream for a subscription, else one result.

        Close the stream (`aclosing`) to close the resolver's generator. A stream whose source fails ends with a result
        that is not `executed`.
        """
        started = time.perf_counter()
        executor = self._executor(request, context)
        if isinstance(executor, Result):
            return self._observed(None, executor, started)
        if executor.operation.operation is not OperationType.SUBSCRIPTION:
            return self._observed(executor, await _run(executor), started)
        return self._observed(executor, await _open_stream(executor), started)

    def _observed(self, executor: Executor[Any] | None, outcome: S, started: float) -> S:
        if self._observe is not None:
            kind = "unknown" if executor is None else executor.operation.operation.value
            result = "ok"
            if isinstance(outcome, Result) and outcome.errors:
                result = "errors" if outcome.executed else "refused"
            self._observe(kind, result, time.perf_counter() - started)
        return outcome

    def _executor(self, request: GraphQLRequest, context: object) -> Executor[Any] | Result:
        document = self._documents.get(request.query)
        if isinstance(document, Result):
            return document
        if document.operation(request.operation_name) is None:
            return refused([_no_operation(document, request.operation_name)], "OPERATION_NOT_FOUND")
        if _holds_too_much(request.variables):
            return refused([GraphQLError(f"Variables may hold {MAX_VARIABLE_VALUES} values.")], "BAD_USER_INPUT")
        executor = self._build(document, request, context)
        return refused(executor, "BAD_USER_INPUT") if isinstance(executor, list) else executor

    def _build(
        self, document: Document, request: GraphQLRequest, context: object
    ) -> Executor[Any] | list[GraphQLError]:
        return self._schema.execution_context_class.build(
            self._schema._schema,
            document.node,
            context_value=context,
            raw_variable_values=dict(request.variables),
            operation_name=request.operation_name,
            is_awaitable=optimized_is_awaitable,  # type: ignore[arg-type]  # Strawberry's says bool, not TypeGuard
            hide_suggestions=self._hide_suggestions,
            # A parameter of Strawberry's executor, for `info.operation_extensions`.
            operation_extensions=dict(request.extensions),
        )


async def _run(executor: Executor[Any]) -> Result:
    try:
        raw = execute_root_selection_set(executor)
        return executed(await raw if isawaitable(raw) else raw)
    except Exception as error:  # noqa: BLE001 - the boundary: whatever comes out of the user's code is masked
        return failed(error, executed=True)


async def _open_stream(executor: Executor[Any]) -> AsyncGenerator[Result, None] | Result:
    try:
        opened = create_source_event_stream(executor)
        source = await opened if isawaitable(opened) else opened
    except Exception as error:  # noqa: BLE001 - the same boundary
        return failed(error)
    if isinstance(source, ExecutionResult):
        return unresolved(source.errors or ())
    return _results(executor, source)


async def _results(executor: Executor[Any], source: AsyncIterable[object]) -> AsyncGenerator[Result, None]:
    async with aclosing(map_source_to_response_event(executor, source, _execute_event)) as responses:
        try:
            async for response in responses:
                yield executed(response)
        except Exception as error:  # noqa: BLE001 - the same boundary: the source raised between two events
            yield failed(error)


def _execute_event(executor: Executor[Any]) -> AwaitableOrValue[ExecutionResult]:
    """Execute one event of a subscription.

    In graphql-core 3.3.2 the executors of all events share one cache of sub-fields, whose keys belong to one event: it
    would grow by 2 to 4 KB with each, of no use to the next. So each event gets a cache of its own.
    """
    executor._relevant_sub_fields = {}
    return execute_subscription_event(executor)


def _holds_too_much(variables: Mapping[str, object]) -> bool:
    """True if the variables hold more than `MAX_VARIABLE_VALUES` values, those in lists and objects counted."""
    values = 0
    waiting: list[Mapping[str, object] | list[object]] = [variables]
    while waiting:
        each = waiting.pop()
        values += len(each)
        if values > MAX_VARIABLE_VALUES:
            return True
        inner = each if isinstance(each, list) else each.values()
        waiting.extend(value for value in inner if isinstance(value, dict | list))
    return False


def _no_operation(document: Document, name: str | None) -> GraphQLError:
    if name is not None:
        return GraphQLError(f"Unknown operation named '{name}'.")
    if document.operations:
        return GraphQLError("Must provide operation name if query contains multiple operations.")
    return GraphQLError("Must provide an operation.")
