"""Signed messages and certificates as somebody would forge, replay or misdirect them."""

from typing import Any

from autopoiesis_lib import Certificate
from autopoiesis_lib.protocol.channel import ORDERING, Channel
from autopoiesis_lib.protocol.envelope import CERTIFICATE, NOTICE, STANDING_ORDERS, seal
from autopoiesis_lib.protocol.keys import SigningKey
from autopoiesis_lib.protocol.notices import Notice, StandingOrders
from autopoiesis_lib.protocol.statement import statement

__all__ = ["altered", "claiming", "put", "sealed", "signed_claim", "standing"]


def standing(channel: Channel, contract: str = ORDERING) -> Notice:
    """Return the notice that stands in a slot."""
    found = channel.read(contract)
    assert found is not None
    return found


def altered(before: Notice, /, **changes: object) -> Notice:
    """Return the notice that would come after another one, with some things changed."""
    return before.model_copy(update={"sequence": before.sequence + 1, **changes})


def sealed(message: Notice | StandingOrders, key: SigningKey | None) -> bytes:
    """Return a message in an envelope, signed by whatever key, or by nobody."""
    kind = NOTICE if isinstance(message, Notice) else STANDING_ORDERS
    return seal(message.to_bytes(), kind, key).to_bytes()


def put(channel: Channel, message: Notice | StandingOrders, key: SigningKey | None, contract: str = ORDERING) -> None:
    """Write a message to where its kind lies, past every check of a publisher."""
    path = channel.slot_path(contract) if isinstance(message, Notice) else channel.orders_path
    path.write_bytes(sealed(message, key))


def claiming(certificate: Certificate, **changes: Any) -> bytes:
    """Return the statement of a certificate with other claims than were proved."""
    predicate = {**certificate.model_dump(mode="json"), **changes}
    return statement(predicate["policy_source"], "policy", predicate)


def signed_claim(certificate: Certificate, key: SigningKey, **changes: Any) -> str:
    """Return a certificate file with other claims, signed after all: only what it says can give it away."""
    return seal(claiming(certificate, **changes), CERTIFICATE, key).to_bytes().decode()
