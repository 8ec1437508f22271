"""Requests that do not fit are refused by the field that is wrong, never by what was in it."""

from __future__ import annotations

import pytest

from gateway.operations import Action
from gateway.requests import (
    check_batch,
    check_no_key_twice,
    dataset_of,
    delete_operation,
    exchange_operation,
    get_operation,
    put_operation,
    write_operation,
)
from policy.errors import (
    InvalidInput,
    InvalidValue,
    LimitReached,
    NoPolicy,
    UnknownColumn,
    UnknownDataset,
    UnknownRegion,
)
from regiongate.v1 import row_service_pb2 as pb
from regiongate.v1 import types_pb2
from tests.support.routing import HandView, table

VIEW = HandView(table())
CUSTOMERS = dataset_of(VIEW, "customers")
KEY = types_pb2.Key(string_key="k")
SPEND = {"spend": types_pb2.Value(int64_value=1)}


def put(**fields: object) -> pb.PutRowRequest:
    request = pb.PutRowRequest(region_code="DE", key=KEY, columns=SPEND)
    request.MergeFrom(pb.PutRowRequest(**fields))
    return request


def test_before_the_first_policy_there_is_no_dataset():
    with pytest.raises(NoPolicy):
        dataset_of(HandView(None), "customers")


def test_an_unknown_dataset_is_refused():
    with pytest.raises(UnknownDataset):
        dataset_of(VIEW, "nothing")


def test_a_row_without_a_tag_has_no_home():
    with pytest.raises(UnknownRegion) as caught:
        get_operation(CUSTOMERS, "", KEY, None, "")
    assert caught.value.field_name == "region_code"


@pytest.mark.parametrize(
    "key",
    [types_pb2.Key(), types_pb2.Key(int64_key=1), types_pb2.Key(string_key=""), types_pb2.Key(string_key="a\0b")],
    ids=["missing", "another kind", "empty", "with U+0000"],
)
def test_a_key_that_is_missing_or_of_another_kind_is_refused(key: types_pb2.Key):
    with pytest.raises(InvalidValue) as caught:
        get_operation(CUSTOMERS, "DE", key, None, "")
    assert caught.value.field_name == "key"


@pytest.mark.parametrize("text", ["k" * 513, "ä" * 257, "😀" * 129], ids=["1 byte", "2 bytes", "4 bytes"])
def test_a_key_above_512_bytes_is_refused_without_being_repeated(text: str):
    with pytest.raises(InvalidValue) as caught:
        get_operation(CUSTOMERS, "DE", types_pb2.Key(string_key=text), None, "")
    assert text[:8] not in str(caught.value)


@pytest.mark.parametrize("text", ["k" * 512, "ä" * 256, "😀" * 128], ids=["1 byte", "2 bytes", "4 bytes"])
def test_a_key_of_512_bytes_is_taken(text: str):
    assert get_operation(CUSTOMERS, "DE", types_pb2.Key(string_key=text), None, "").key == text


def test_an_unknown_column_is_refused():
    request = put(columns={"shoe_size": types_pb2.Value(int64_value=1)})
    with pytest.raises(UnknownColumn):
        put_operation(CUSTOMERS, request, request.columns, "", "")


def test_a_value_of_the_wrong_type_is_refused_by_its_column():
    request = pb.PutRowRequest(region_code="DE", key=KEY, columns={"spend": types_pb2.Value(string_value="hidden")})
    with pytest.raises(InvalidValue) as caught:
        put_operation(CUSTOMERS, request, request.columns, "", "")
    assert caught.value.field_name == "columns.spend"
    assert "hidden" not in str(caught.value)


def test_a_row_above_a_mebibyte_is_refused():
    request = put(columns={"name": types_pb2.Value(string_value="x" * ((1 << 20) + 1))})
    with pytest.raises(LimitReached):
        put_operation(CUSTOMERS, request, request.columns, "", "")


@pytest.mark.parametrize("request_id", ["x" * 65, "ü", "a\nb"], ids=["too long", "not ASCII", "not printable"])
def test_a_request_id_that_is_not_short_printable_ascii_is_refused(request_id: str):
    request = put()
    with pytest.raises(InvalidValue):
        put_operation(CUSTOMERS, request, request.columns, request_id, "")


def test_a_put_may_demand_that_there_is_no_row_and_a_delete_may_not():
    request = put(if_version=0)
    assert put_operation(CUSTOMERS, request, request.columns, "", "").if_version == 0
    assert put_operation(CUSTOMERS, put(), put().columns, "", "").if_version is None
    with pytest.raises(InvalidValue):
        put_operation(CUSTOMERS, put(if_version=-1), put().columns, "", "")
    with pytest.raises(InvalidValue):
        delete_operation(CUSTOMERS, pb.DeleteRowRequest(region_code="DE", key=KEY, if_version=0), "", "")


def test_a_write_that_says_neither_put_nor_delete_is_refused():
    with pytest.raises(InvalidInput):
        write_operation(CUSTOMERS, pb.RowWrite(region_code="DE", key=KEY), "", "")
    with pytest.raises(InvalidInput):
        exchange_operation(VIEW, pb.Operation(dataset="customers", region_code="DE", key=KEY))


def test_a_read_with_a_condition_is_refused():
    operation = pb.Operation(dataset="customers", region_code="DE", key=KEY, get=pb.GetAction(), if_version=3)
    with pytest.raises(InvalidInput):
        exchange_operation(VIEW, operation)


def test_an_operation_on_a_stream_becomes_what_it_says():
    operation = pb.Operation(
        dataset="customers", region_code="DE", key=KEY, delete=pb.DeleteMark(), if_version=3, request_id="r"
    )
    parsed = exchange_operation(VIEW, operation)
    assert (parsed.action, parsed.if_version, parsed.request_id) == (Action.DELETE, 3, "r")


def test_a_batch_has_at_most_a_thousand_rows_and_no_row_twice():
    check_batch([None] * 1000, "keys")
    with pytest.raises(LimitReached):
        check_batch([None] * 1001, "keys")
    twice = [get_operation(CUSTOMERS, region, KEY, None, "") for region in ("DE", "CN", "DE")]
    check_no_key_twice(twice[:2])
    with pytest.raises(InvalidValue):
        check_no_key_twice(twice)
