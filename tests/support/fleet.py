"""A fleet of engines as an operator sets it up: one signing key, its public half where engines look, and channels."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from autopoiesis_lib import Certificate, Policy
from autopoiesis_lib.certificate import sign
from autopoiesis_lib.protocol.channel import Channel, Trust
from autopoiesis_lib.protocol.keys import SigningKey, load_key, new_key


@dataclass(frozen=True)
class Fleet:
    """A folder with a key pair `fleet` in `secret/` and its public half in `trusted/`, and freshness records in `state/`."""

    folder: Path

    @cached_property
    def key(self) -> SigningKey:
        """The signing key, made when it is asked for the first time in this folder."""
        if not (self.folder / "secret").exists():
            new_key(self.folder / "secret", "fleet")
            self.keys.mkdir()
            (self.keys / "fleet.pub").write_text((self.folder / "secret" / "fleet.pub").read_text())
        return load_key(self.folder / "secret", "fleet")

    @property
    def keys(self) -> Path:
        """The folder of trusted public keys."""
        return self.folder / "trusted"

    def publisher(self, root: Path) -> Channel:
        """Return a channel as the control plane has it: it signs."""
        key = self.key
        return Channel(root, key, Trust(self.keys), self.folder / "state" / "publisher")

    def reader(self, root: Path, name: str = "engine") -> Channel:
        """Return a channel as an engine has it: it has no private key, and a freshness record of its own."""
        _ = self.key
        return Channel(root, trust=Trust(self.keys), state=self.folder / "state" / name)

    def certificate(self, certificate: Certificate) -> str:
        """Return the text of a signed certificate file."""
        return sign(certificate, self.key).to_bytes().decode()

    def publish(self, root: Path, policy: Policy, certificate: Certificate, **how: object) -> str:
        """Publish a policy and return its digest."""
        self.publisher(root).publish(
            policy.digest,
            policy.source,
            self.certificate(certificate),
            contract=policy.contract.contract_name,
            **how,  # type: ignore[arg-type]
        )
        return policy.digest
