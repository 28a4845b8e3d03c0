"""The scalars of the schema accept what their descriptions say, and nothing else."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from headwater.graphql.scalars import parse_time


@pytest.mark.parametrize("text", ["2019-12-30T12:00:00Z", "2019-12-30T13:00:00.000000+01:00"])
def test_a_time_is_read_in_rfc_3339(text: str) -> None:
    assert parse_time(text) == datetime(2019, 12, 30, 12, tzinfo=UTC)


@pytest.mark.parametrize("text", ["2020-W01-1T12:00:00Z", "2020W011T12:00:00Z", "20191230T12:00:00Z"])
def test_a_week_date_or_a_date_without_hyphens_is_no_time(text: str) -> None:
    with pytest.raises(ValueError, match="Expected a time such as"):
        parse_time(text)
