"""The messages of graphql-transport-ws: checks of the client's messages, and the text of the server's."""

from collections.abc import Mapping

import msgspec

from headwater.graphql.request import BadRequest, GraphQLRequest, decode_json

ACKNOWLEDGEMENT = '{"type":"connection_ack"}'


class CloseCode:
    """Close codes of sockets. graphql-ws clients reconnect after 1001, 1013, 4403 and 4408."""

    GOING_AWAY = 1001
    NOT_UTF8 = 1007
    INTERNAL_ERROR = 1011
    SLOW_CONSUMER = 1013
    BAD_REQUEST = 4400
    UNAUTHORIZED = 4401
    FORBIDDEN = 4403
    SUBPROTOCOL_NOT_ACCEPTABLE = 4406
    INIT_TIMEOUT = 4408
    SUBSCRIBER_EXISTS = 4409
    TOO_MANY_INITS = 4429


class Violation(Exception):
    """The client broke the protocol. The socket is closed with this code."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


def decoded(text: str | None) -> Mapping[str, object]:
    if text is None:
        raise Violation(CloseCode.BAD_REQUEST, "Invalid message: frames must be text")
    try:
        message = decode_json(text, "message")
    except BadRequest as error:
        raise Violation(CloseCode.BAD_REQUEST, str(error)) from error
    if not isinstance(message, dict):
        raise Violation(CloseCode.BAD_REQUEST, "Invalid message: it must be an object")
    return message


def id_of(message: Mapping[str, object]) -> str:
    operation_id = message.get("id")
    if not isinstance(operation_id, str) or not operation_id:
        raise Violation(CloseCode.BAD_REQUEST, 'Invalid message: "id" must be a non-empty string')
    return operation_id


def payload_of(message: Mapping[str, object]) -> Mapping[str, object] | None:
    payload = message.get("payload")
    if payload is not None and not isinstance(payload, dict):
        raise Violation(CloseCode.BAD_REQUEST, 'Invalid message: "payload" must be an object or null')
    return payload


def request_of(message: Mapping[str, object]) -> GraphQLRequest:
    try:
        return GraphQLRequest.from_json(message.get("payload"))
    except BadRequest as error:
        raise Violation(CloseCode.BAD_REQUEST, f"Invalid payload: {error}") from error


def frame(kind: str, operation_id: str, payload: bytes | None = None) -> str:
    """Return a message with a payload that is already JSON, so that a result for many sockets is encoded once."""
    head = f'{{"id":{msgspec.json.encode(operation_id).decode()},"type":"{kind}"'
    return f"{head}}}" if payload is None else f'{head},"payload":{payload.decode()}}}'


def pong(payload: Mapping[str, object] | None) -> str:
    message = {"type": "pong"} if payload is None else {"type": "pong", "payload": payload}
    return msgspec.json.encode(message).decode()


def too_many(operation_id: str, limit: int) -> str:
    message = f"This socket may have {limit} operations at a time."
    errors = [{"message": message, "extensions": {"code": "TOO_MANY_OPERATIONS"}}]
    return frame("error", operation_id, msgspec.json.encode(errors))
