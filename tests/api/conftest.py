from collections.abc import AsyncIterator

import pytest

from tests.api.serving import Served, serving_echo


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serving_echo() as running:
        yield running
