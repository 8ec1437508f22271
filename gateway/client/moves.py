"""Moving one row to another RegionCode: one unary call at the owner of its old home."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.client import values
from gateway.client.model import MoveReceipt

if TYPE_CHECKING:
    from gateway.client.calls import Calls
    from gateway.client.many import Stated
    from gateway.client.routes import Routes
    from regiongate.v1 import row_service_pb2


class RowMoves:
    """Moves rows for one client."""

    def __init__(self, routes: Routes, calls: Calls) -> None:
        self._routes = routes
        self._calls = calls

    async def move(
        self,
        request: row_service_pb2.MoveRowRequest,
        key: str | int,
        stated: Stated,
        traceparent: str,
    ) -> MoveReceipt:
        """Moves the row; its retries carry the same request_id, and so the row moves once."""
        answer = await self._calls.call(
            lambda endpoint: endpoint.rows.MoveRow,
            request,
            hop=self._routes.next_hop(request.region_code, key),
            purpose=stated.purpose,
            deadline=stated.deadline,
            traceparent=traceparent,
        )
        return MoveReceipt(
            answer.receipt.version,
            values.read_time(answer.receipt.update_time),
            values.decode_decision(answer.from_decision),
            values.decode_decision(answer.to_decision),
        )
