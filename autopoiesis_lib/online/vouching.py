"""A signature that the readers of a channel trust today, for a policy certified under any key."""

from collections.abc import Mapping

from ..binding import bound_policy
from ..certificate import Certificate, CertificateError, sign, verify
from ..protocol.channel import Channel
from ..protocol.envelope import CERTIFICATE, Envelope, seal
from ..protocol.keys import SignatureRefused
from ..protocol.statement import envelope_of
from ..registry import contract_named

__all__ = ["proved_again", "vouched_for"]


def vouched_for(channel: Channel, digest: str, source: str, data: bytes) -> bytes:
    """Return a certificate file of a policy that the readers of a channel accept.

    It is the given one if a trusted key signed it. Otherwise the policy passes every gate again, and the new
    certificate is signed with the channel's key.

    Args:
        channel: the channel.
        digest: the digest of the policy.
        source: its text.
        data: a certificate file of it.

    Raises:
        CertificateError: the files are about another policy or contract, or state another bound than is proved.
        Rejected: the policy does not pass the gates.
    """
    envelope = envelope_of(data)
    certificate = Certificate.of(envelope, f"the certificate of policy {digest[:12]}")
    if certificate.policy_digest != digest or certificate.policy_source != source:
        raise CertificateError(
            f"the files of policy {digest[:12]} are about policy {certificate.policy_digest[:12]}; deploy it anew"
        )
    try:
        channel.trust.check(envelope, f"the certificate of policy {digest[:12]}", channel.key)
    except SignatureRefused:
        return _sealed(proved_again(certificate, source, certificate.contract_parameters), channel).to_bytes()
    return data


def proved_again(claimed: Certificate, source: str, parameters: Mapping[str, int | bool]) -> Certificate:
    """Return the certificate that the gates make now for a policy that already has one.

    Args:
        claimed: the certificate that no trusted key signed; its claims count for nothing.
        source: the policy's text.
        parameters: the contract's parameters, from a source that may choose them.

    Raises:
        CertificateError: the claimed certificate is about another policy, contract or parameters, or states another
            bound than is proved.
        Rejected: the policy does not pass the gates.
    """
    contract = contract_named(claimed.contract, **parameters)
    told = {
        name: value for name, value in claimed.contract_parameters.items() if contract.model_dump().get(name) != value
    }
    if told:
        name, value = next(iter(told.items()))
        raise CertificateError(
            f"the certificate is for {name}={value}, and here {name} is {contract.model_dump().get(name)}; say "
            f"--set {name}={value} if engines may run that"
        )
    found = verify(bound_policy(claimed, contract, source))
    if dict(found.bounds) != dict(claimed.bounds):
        raise CertificateError(
            f"policy {found.policy_digest[:12]}: its certificate states the bounds {dict(claimed.bounds)}, proved are "
            f"{dict(found.bounds)}; make a new one by `autopoiesis verify`"
        )
    return found


def _sealed(certificate: Certificate, channel: Channel) -> Envelope:
    return seal(certificate.payload(), CERTIFICATE) if channel.key is None else sign(certificate, channel.key)
