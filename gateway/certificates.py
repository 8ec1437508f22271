"""TLS credentials of the two listeners, read again when the files have changed: no restart to rotate a certificate."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc
import structlog

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from gateway.settings import GatewaySettings

log = structlog.get_logger("gateway.certificates")


class CertificateFiles:
    """A certificate, its key and the CAs that callers are checked against, as files."""

    def __init__(self, certificate: Path, key: Path, ca: Path | None) -> None:
        self._certificate = certificate
        self._key = key
        self._ca = ca
        self._seen = self._stamp()

    def read(self) -> grpc.ServerCertificateConfiguration:
        """What the files say now; raises `OSError`."""
        ca = self._ca.read_bytes() if self._ca is not None else None
        chain = [(self._key.read_bytes(), self._certificate.read_bytes())]
        return grpc.ssl_server_certificate_configuration(chain, root_certificates=ca)

    def read_changed(self) -> grpc.ServerCertificateConfiguration | None:
        """The same when a file has changed since the last time, else None; for each handshake."""
        try:
            stamp = self._stamp()
            if stamp == self._seen:
                return None
            changed = self.read()
        except OSError as error:
            log.warning("certificates cannot be read, the ones before stay in use", reason=error.strerror)
            return None
        self._seen = stamp
        log.info("certificates read again", certificate=str(self._certificate))
        return changed

    def credentials(self) -> grpc.ServerCredentials:
        """Credentials of a listener; with a CA every caller must show a certificate. Raises `OSError`."""
        return grpc.dynamic_ssl_server_credentials(
            self.read(),
            self.read_changed,  # pyright: ignore[reportArgumentType] (None means unchanged; the stub does not know)
            require_client_authentication=self._ca is not None,
        )

    def _stamp(self) -> Sequence[tuple[int, int]]:
        files = [self._certificate, self._key, *([self._ca] if self._ca is not None else [])]
        return [(status.st_mtime_ns, status.st_ino) for status in (path.stat() for path in files)]


def client_listener_credentials(settings: GatewaySettings) -> grpc.ServerCredentials | None:
    """TLS for clients, mutual where a client CA is set; None for plaintext. Raises `OSError`."""
    if settings.tls_cert_file is None or settings.tls_key_file is None:
        return None
    return CertificateFiles(settings.tls_cert_file, settings.tls_key_file, settings.tls_client_ca_file).credentials()


def peer_listener_credentials(settings: GatewaySettings) -> grpc.ServerCredentials | None:
    """Mutual TLS for peers; None for plaintext. Raises `OSError`."""
    if settings.peer_cert_file is None or settings.peer_key_file is None:
        return None
    return CertificateFiles(settings.peer_cert_file, settings.peer_key_file, settings.peer_ca_file).credentials()


def peer_channel_credentials(settings: GatewaySettings) -> grpc.ChannelCredentials:
    """What this gateway shows to its peers, where it speaks TLS with them. Raises `OSError`."""
    if settings.peer_cert_file is None or settings.peer_key_file is None or settings.peer_ca_file is None:
        raise ValueError("there is no peer certificate")
    return grpc.ssl_channel_credentials(
        settings.peer_ca_file.read_bytes(), settings.peer_key_file.read_bytes(), settings.peer_cert_file.read_bytes()
    )
