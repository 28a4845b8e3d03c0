"""The errors of Headwater. A class's docstring is what the reader of the error sees; its fields are the facts.

A *refusal* (`headwater.Refusal`) is a value: the rules of the business say no. An *error* is a fault or a mistake.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from uuid import UUID


class HeadwaterError(Exception):
    """The root of every error that Headwater raises. A refusal is not an error.

        except HeadwaterError as error:
            sys.exit(str(error))

    Its text is a sentence that says what is wrong, and what to change.
    """


class DefinitionError(HeadwaterError):
    """The app's own declarations are wrong; the message names the class and the field.

        with pytest.raises(DefinitionError, match="Deposit.amount"):
            App([accounts])

    It is raised when the class or the app is made, before anything is opened.
    """


class SettingsError(HeadwaterError):
    """A setting has a value that cannot be used. The message names the setting and what to change."""


class LogError(HeadwaterError):
    """The log holds an event that this code cannot read, or the call asks it for something impossible."""


class UnreadableEvent(HeadwaterError):
    """A decision gave an event that could not be read back from the log as it is; nothing was written. The fault is in
    the domain's code: the sentence names the event's class and the field."""


class MisplacedEvent(HeadwaterError):
    """A decision gave an event whose key is the id of another stream; nothing was written. The fault is in the domain's
    code: the sentence names the event's class and the field."""


class UndeclaredAnswer(HeadwaterError):
    """A decide function returned something that the annotation of its result does not name; nothing was written. The
    fault is in the domain's code: the sentence names the function and what it returned."""


class ImpureFunction(HeadwaterError):
    """A function of the app had another result, or another input, when it was called twice with the same input. The
    sentence names the function. `headwater dev` and `headwater.testing` look for it.

        with pytest.raises(ImpureFunction, match="decide"):
            given(orders).when(PlaceOrder(order_id=uuid4()))
    """


class FloatForMoney(UserWarning):
    """A field with the name of an amount of money is a `float`, which cannot hold 0.10 exactly.

        warnings.simplefilter("ignore", FloatForMoney)

    Written before the app is made, this silences the warning.
    """


class CodeFailed(HeadwaterError):
    """A function of the app raised `error`. It counts as a failure of the app, whatever its type. Without this class,
    an OSError of a fold or a decision would look like a fault of the database, which is waited out."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(f"{type(error).__name__}: {error}")
        self.error = error


class ReactionFailed(CodeFailed):
    """A reactor's function raised, or took too long."""


class PublicError(HeadwaterError):
    """An error that a client may read: `code` is stable and in CONSTANT_CASE, the message is a sentence. `facts` are
    JSON values by name, which the client gets beside the code.

        except PublicError as error:
            print(error.code, error)    # OVERLOADED The server has as many commands waiting as it accepts; ...
    """

    code = "ERROR"
    facts: Mapping[str, object] = MappingProxyType({})


class Overloaded(PublicError):
    """The server has as many commands waiting as it accepts; nothing was written. Try again later."""

    code = "OVERLOADED"


class Unavailable(PublicError):
    """The log cannot be reached; nothing was written. Try again later."""

    code = "UNAVAILABLE"


class OutcomeUnknown(PublicError):
    """The connection to the log was lost while the command was being written. Send it again with the same commandId."""

    code = "OUTCOME_UNKNOWN"


class LogWentBack(PublicError):
    """The position is of a part of the log that was lost: a replica took over that did not have it, or a backup was
    restored. Drop what you know from after `position`, and read again from there."""

    code = "LOG_WENT_BACK"

    def __init__(self, position: str) -> None:
        super().__init__(LogWentBack.__doc__)
        self.position = position
        self.facts = {"position": position}


class Contended(PublicError):
    """Other commands changed the same stream each time this one was decided; nothing was written. Try again."""

    code = "CONTENDED"


class CommandIdReused(PublicError):
    """This commandId has already been used for something else; nothing was written. Choose a new one."""

    code = "COMMAND_ID_REUSED"

    def __init__(self, message: str, stream_id: UUID) -> None:
        super().__init__(message)
        self.stream_id = stream_id
        """The stream of the command that has the id."""


class ProjectionBehind(PublicError):
    """The read model has not reached the requested position in time. What was written is safe; read again."""

    code = "PROJECTION_BEHIND"


class ReadModelRebuilding(PublicError):
    """The field belongs to another version of the read model than the live one. Try again when that is live."""

    code = "READ_MODEL_REBUILDING"


class AsOfUnsupported(PublicError):
    """The read model's rows gather events of several streams, so the past of one cannot be read from its own stream."""

    code = "AS_OF_UNSUPPORTED"


class SearchTooWide(PublicError):
    """The search went through too much of the log in the time it has. Narrow it by stream, correlation or time."""

    code = "SEARCH_TOO_WIDE"


class QueryTimedOut(PublicError):
    """The query took longer in the database than a statement may. Ask for less at a time, or narrow the filter."""

    code = "QUERY_TIMED_OUT"


class NumberOutOfRange(PublicError):
    """The field holds a number that GraphQL cannot show: an int of more than 32 bits, or a float that is not finite."""

    code = "NUMBER_OUT_OF_RANGE"


class BadUserInput(PublicError):
    """An argument breaks a rule that the schema cannot express."""

    code = "BAD_USER_INPUT"
