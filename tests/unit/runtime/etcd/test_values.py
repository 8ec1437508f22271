"""Prefix ends, endpoints, and the table of errors."""

import pytest
from grpc import StatusCode
from pydantic import SecretStr

from runtime.etcd import (
    EtcdCompacted,
    EtcdDeadline,
    EtcdDenied,
    EtcdRejected,
    EtcdSettings,
    EtcdTooLarge,
    EtcdUnavailable,
)
from runtime.etcd.endpoints import Endpoint, Endpoints, parse_endpoint
from runtime.etcd.errors import translate
from runtime.etcd.transport import back_off
from runtime.etcd.types import range_end


@pytest.mark.parametrize(("prefix", "end"), [("/a/", b"/a0"), ("", b"\0"), ("ab", b"ac"), ("\x7f", b"\x80")])
def test_a_prefix_ends_before_the_next_key(prefix, end):
    assert range_end(prefix) == end


@pytest.mark.parametrize(
    ("text", "default_tls", "expected"),
    [
        ("127.0.0.1:2379", False, Endpoint("127.0.0.1:2379", False)),
        ("etcd.example", False, Endpoint("etcd.example:2379", False)),
        ("etcd.example:1", True, Endpoint("etcd.example:1", True)),
        ("http://a:1", True, Endpoint("a:1", False)),
        ("https://a:1/", False, Endpoint("a:1", True)),
        ("https://[::1]:1", False, Endpoint("[::1]:1", True)),
    ],
)
def test_an_endpoint_is_an_address_or_a_url(text, default_tls, expected):
    assert parse_endpoint(text, default_tls=default_tls) == expected


@pytest.mark.parametrize("text", ["", "ftp://a:1", "http://", "http://a:1/v3", "a:port"])
def test_anything_else_is_no_endpoint(text):
    with pytest.raises(ValueError, match="not an etcd endpoint"):
        parse_endpoint(text, default_tls=False)


def test_a_failed_member_is_left_once_however_many_callers_saw_it_fail():
    endpoints = Endpoints(EtcdSettings(("a:1", "b:1", "c:1")))
    endpoints.fail(0)
    endpoints.fail(0)
    assert endpoints.preferred == 1
    endpoints.fail(1)
    endpoints.fail(2)
    assert endpoints.preferred == 0


def test_settings_never_show_the_password():
    assert "hush" not in repr(EtcdSettings(("a:1",), username="u", password="hush"))
    assert EtcdSettings(("a:1",), password=SecretStr("hush")).plain_password == "hush"


@pytest.mark.parametrize(
    ("code", "details", "kind"),
    [
        (StatusCode.UNAVAILABLE, "etcdserver: leader changed", EtcdUnavailable),
        (StatusCode.CANCELLED, "etcdserver: watch canceled", EtcdUnavailable),
        (StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded", EtcdDeadline),
        (StatusCode.OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted", EtcdCompacted),
        (StatusCode.OUT_OF_RANGE, "etcdserver: mvcc: required revision is a future revision", EtcdRejected),
        (StatusCode.PERMISSION_DENIED, "etcdserver: permission denied", EtcdDenied),
        (StatusCode.INVALID_ARGUMENT, "etcdserver: user name is empty", EtcdDenied),
        (StatusCode.INVALID_ARGUMENT, "etcdserver: request is too large", EtcdTooLarge),
        (StatusCode.RESOURCE_EXHAUSTED, "CLIENT: Received message larger than max (9 vs. 4)", EtcdTooLarge),
        (StatusCode.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded", EtcdRejected),
        (StatusCode.RESOURCE_EXHAUSTED, "etcdserver: too many requests", EtcdUnavailable),
    ],
)
def test_each_status_has_one_error(code, details, kind):
    error = translate(code, details, "a:1")
    assert type(error) is kind


def test_an_answer_that_came_before_the_log_proves_that_nothing_was_applied():
    refused = translate(StatusCode.UNAVAILABLE, "etcdserver: no leader", "a:1")
    lost = translate(StatusCode.UNAVAILABLE, "Socket closed", "a:1")
    assert isinstance(refused, EtcdUnavailable)
    assert isinstance(lost, EtcdUnavailable)
    assert not refused.may_have_applied
    assert lost.may_have_applied


def test_waits_grow_to_a_second_and_no_further():
    assert 0.01 <= back_off(0) <= 0.02
    assert 0.5 <= back_off(1000) <= 1.0
