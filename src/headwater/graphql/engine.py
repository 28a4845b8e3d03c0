"""Runs GraphQL operations for every transport: parsed and validated once, executed as Strawberry would."""

import time
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Mapping, Sequence
from contextlib import aclosing
from inspect import isawaitable
from typing import Any, TypeVar

import strawberry
from graphql import ASTValidationRule, ExecutionResult, GraphQLError, OperationType
from graphql.execution import (
    Executor,
    create_source_event_stream,
    execute_root_selection_set,
    map_source_to_response_event,
)
from strawberry.execution import optimized_is_awaitable

from headwater.graphql.documents import Document, Documents, Limits
from headwater.graphql.request import GraphQLRequest
from headwater.graphql.result import Result, executed, failed, refused, unresolved

S = TypeVar("S")

# Variables are coerced before a resolver can look at them, in one go: a body of 1 MiB would hold the event loop for two
# seconds, this many hold it for a fifth of one.
MAX_VARIABLE_VALUES = 10_000

# Told of each operation when its result is there, or its stream open: its kind, `ok`, `errors` or `refused`, seconds.
Observe = Callable[[str, str, float], None]


class Engine:
    """Executes the operations of one schema.

    `guards` are validation rules that must pass before all others run. The limits are on a document's text: its length
    in characters, its tokens, and how many documents are remembered. `observe` is told of each operation.

    The engine builds Strawberry's own executor and drives it through the functions of graphql-core, in place of
    `Schema.execute`, which parses and validates each time, logs client errors as errors, and answers refused variables
    and a null root alike. What would need that pipeline, schema extensions and operation directives, is refused here
    rather than silently left out.
    """

    def __init__(
        self,
        schema: strawberry.Schema,
        *,
        guards: Sequence[type[ASTValidationRule]] = (),
        max_source_length: int = 64 * 1024,
        max_tokens: int = 5_000,
        max_documents: int = 1_000,
        observe: Observe | None = None,
    ) -> None:
        if schema.get_extensions():
            raise ValueError("The engine runs no Strawberry schema extensions and no operation directives.")
        if schema.config.enable_experimental_incremental_execution:
            raise ValueError("The engine answers with one result: it knows neither @defer nor @stream.")
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
        """Query, mutation or subscription; None for a request that will be refused. Runs nothing."""
        document = self._documents.get(request.query)
        if isinstance(document, Result):
            return None
        operation = document.operation(request.operation_name)
        return operation.operation if operation else None

    async def execute(self, request: GraphQLRequest, context: object) -> Result:
        """Run a query or a mutation to its one result. Never raises for what the client or a resolver did."""
        started = time.perf_counter()
        executor = self._executor(request, context)
        if isinstance(executor, Result):
            return self._observed(None, executor, started)
        if executor.operation.operation is OperationType.SUBSCRIPTION:
            raise ValueError("execute() runs queries and mutations: use subscribe().")
        return self._observed(executor, await _run(executor), started)

    async def subscribe(self, request: GraphQLRequest, context: object) -> AsyncGenerator[Result, None] | Result:
        """Run an operation of any kind: a subscription gives its stream, all else one result.

        Close the stream (`aclosing`): that closes the resolver's generator. A stream whose source fails ends with a
        result that is not `executed`.
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
            # Strawberry's executor takes this one over and above graphql-core's, for `info.operation_extensions`.
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
    async with aclosing(map_source_to_response_event(executor, source)) as responses:
        try:
            async for response in responses:
                yield executed(response)
        except Exception as error:  # noqa: BLE001 - the same boundary: the source raised between two events
            yield failed(error)


def _holds_too_much(variables: Mapping[str, object]) -> bool:
    """Whether the variables hold more values than are taken, those in lists and objects counted."""
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
