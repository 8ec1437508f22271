"""Settings: flags win over variables, secrets stay secret, and incomplete TLS is refused."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from runtime.config import EtcdOptions, Settings, TelemetryOptions, TlsOptions


class Example(Settings, EtcdOptions, TlsOptions, TelemetryOptions):
    """A process."""


def test_endpoints_are_a_comma_list_in_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGIONGATE_ETCD_ENDPOINTS", "a:1, b:2,")
    assert Example().etcd_endpoints == ("a:1", "b:2")


def test_a_given_value_wins_over_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGIONGATE_METRICS_PORT", "1")
    assert Example(metrics_port=2).metrics_port == 2


def test_a_password_is_not_shown() -> None:
    settings = Example(etcd_username="u", etcd_password="hunter2")
    assert "hunter2" not in repr(settings)
    assert settings.etcd_settings().username == "u"


def test_a_rejected_value_is_not_echoed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGIONGATE_METRICS_PORT", "hunter2")
    with pytest.raises(ValidationError) as caught:
        Example()
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "given",
    [
        {"etcd_cert_file": Path("c")},
        {"peer_cert_file": Path("c"), "peer_key_file": Path("k")},
        {"tls_key_file": Path("k")},
        {"tls_client_ca_file": Path("ca")},
    ],
)
def test_tls_files_that_go_together_are_demanded_together(given: dict[str, Path]) -> None:
    with pytest.raises(ValidationError, match=r"go together|needs"):
        Example(**given)


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(ValidationError):
        Example(metrics_prot=1)


def test_every_field_has_a_help_text() -> None:
    assert [name for name, field in Example.model_fields.items() if not field.description] == []
