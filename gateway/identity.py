"""Who calls: what the metadata states, and how much of it is believed.

The client listener believes nothing that widens: a purpose is judged by access rules, a stated origin can only narrow,
and stating an ingress is refused, because only a gateway may say that a call has entered elsewhere (one hop at most).
On the peer listener a gateway states where a call has entered; with TLS its certificate must name that same IDC by a
URI SAN `spiffe://regiongate/idc/<idc>`. The controller states nothing and is `spiffe://regiongate/controller`.
Plaintext peers are believed: settings allow that on loopback, or where someone has asked for it in so many words.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from policy.errors import AccessDenied, InvalidInput

if TYPE_CHECKING:
    import grpc.aio

    ServicerContext = grpc.aio.ServicerContext[Any, Any]

PURPOSE: Final = "x-regiongate-purpose"
ORIGIN: Final = "x-regiongate-origin"
INGRESS: Final = "x-regiongate-ingress"
TRACEPARENT: Final = "traceparent"

SPIFFE_IDC: Final = "spiffe://regiongate/idc/"
SPIFFE_CONTROLLER: Final = "spiffe://regiongate/controller"

_MAX_PURPOSE: Final = 64
_IDC_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}", re.ASCII)


class Caller(NamedTuple):
    """What is known of a caller."""

    purpose: str = ""
    origin_idc: str = ""
    ingress_idc: str = ""
    traceparent: str = ""


_NOBODY: Final = Caller()


class Side(Protocol):
    """What one listener makes of its callers."""

    def identify(self, context: ServicerContext) -> Caller:
        """Who calls; raises `InvalidInput` or `AccessDenied`."""
        ...


def _read(context: ServicerContext) -> Caller:
    """What the metadata states, unbelieved."""
    caller = _NOBODY
    for name, value in context.invocation_metadata() or ():
        if name == PURPOSE:
            caller = caller._replace(purpose=_text(PURPOSE, value))
            if len(caller.purpose) > _MAX_PURPOSE:
                raise InvalidInput(f"{PURPOSE} is longer than {_MAX_PURPOSE} characters", field_name=PURPOSE)
        elif name == TRACEPARENT:
            caller = caller._replace(traceparent=_text(TRACEPARENT, value))
        elif name == ORIGIN:
            caller = caller._replace(origin_idc=_idc(ORIGIN, value))
        elif name == INGRESS:
            caller = caller._replace(ingress_idc=_idc(INGRESS, value))
    return caller


def _text(name: str, value: str | bytes) -> str:
    try:
        return value if isinstance(value, str) else value.decode("ascii")
    except UnicodeDecodeError:
        raise InvalidInput(f"{name} is not ASCII", field_name=name) from None


def _idc(name: str, value: str | bytes) -> str:
    text = _text(name, value)
    if not _IDC_NAME.fullmatch(text):
        raise InvalidInput(f"{name} is not the name of an IDC", field_name=name)
    return text


class ClientSide:
    """Callers on the client listener."""

    def identify(self, context: ServicerContext) -> Caller:
        """Who calls; raises `InvalidInput`."""
        caller = _read(context)
        if caller.ingress_idc:
            raise InvalidInput(
                f"a call that has crossed a hop already ({INGRESS}) is not taken from a client", field_name=INGRESS
            )
        return caller


class PeerSide:
    """Callers on the peer listener: gateways, which state an ingress, and the controller, which states none."""

    def __init__(self, *, has_tls: bool) -> None:
        self._has_tls = has_tls

    def identify(self, context: ServicerContext) -> Caller:
        """Who calls; raises `AccessDenied` when its certificate names somebody else."""
        caller = _read(context)
        if self._has_tls:
            stated = f"{SPIFFE_IDC}{caller.ingress_idc}" if caller.ingress_idc else SPIFFE_CONTROLLER
            if stated not in certificate_uris(context):
                raise AccessDenied(f"the peer's certificate does not name {stated}", rule="peer-identity")
        return caller


def check_ingress(ingress_idc: str) -> None:
    """Raises `InvalidInput` unless a peer has said where the call entered: rows are judged by that."""
    if not ingress_idc:
        raise InvalidInput(f"a call for rows between IDCs states {INGRESS}", field_name=INGRESS)


def check_controller(ingress_idc: str) -> None:
    """Raises `InvalidInput` when a gateway calls what is the controller's."""
    if ingress_idc:
        raise InvalidInput("fences and moves are the controller's", field_name=INGRESS)


def certificate_uris(context: ServicerContext) -> frozenset[str]:
    """The `spiffe://` names in the caller's verified certificate; none without one."""
    names = context.auth_context().get("peer_spiffe_id", ())
    return frozenset(name.decode("utf-8", "replace") for name in names)
