import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Arrays are small here: more threads than cores cost much more than they give."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
