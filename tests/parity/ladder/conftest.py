import pytest

from parity.ladder.climb import few_threads


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Small products wait for one another on several."""
    with few_threads(1):
        yield
