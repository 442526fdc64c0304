"""A model that the machine cannot hold is refused before anything is made, by the size that is to blame."""

from dataclasses import replace
from math import prod

import pytest

from sparc_ref.model import PRESETS, parameter_shapes
from sparc_ref.run import memory
from sparc_ref.run.memory import check_memory, numbers


@pytest.mark.parametrize("preset", PRESETS)
def test_numbers_are_those_of_the_parameters(preset):
    for config in (PRESETS[preset], replace(PRESETS[preset], text_positions="none", h_v="none", temperature="separate")):
        assert numbers(config) == sum(prod(shape) for shape in parameter_shapes(config).values())


@pytest.mark.parametrize("size", [{"embed_dim": 10**9}, {"vision_depth": 10**9}, {"text_depth": 10**9}, {"max_tokens": 10**11},
                                  {"text_width": 4 * 10**6}, {"mlp_ratio": 10**8}, {"vocab_size": 10**11}], ids=str)
def test_the_size_to_blame(size):
    (name, value), = size.items()
    with pytest.raises(ValueError, match=rf"^{name}: expected a model that fits into memory, got {value}: .* parameters, of "
                                         r"which training holds 4 copies, .* GiB in all, and 8 GiB are free"):
        check_memory(replace(PRESETS["tiny"], embed_dim=96, **size) if name != "embed_dim" else
                     replace(PRESETS["tiny"], **size), free=8 << 30)


def test_what_fits_and_what_is_not_known(monkeypatch):
    config = PRESETS["tiny"]
    check_memory(config, free=16 * numbers(config))
    with pytest.raises(ValueError, match=r"^preset: expected a model that fits"):
        check_memory(config, free=16 * numbers(config) - 1)
    monkeypatch.setattr(memory, "available", lambda: None)
    check_memory(replace(config, embed_dim=10**9))


@pytest.mark.parametrize("copies, item", [(1, 4), (4, 8), (3, 2)])
def test_copies_and_their_bytes_count(copies, item):
    config = PRESETS["small"]
    need = copies * item * numbers(config)
    check_memory(config, copies, item, free=need)
    told = f"holds {copies} copies, {need / 2**30:.3g} GiB in all, and {need / 2**31:.3g} GiB are free"
    with pytest.raises(ValueError, match=told):
        check_memory(config, copies, item, free=need // 2)


def test_what_is_available_is_what_the_kernel_says(monkeypatch):
    """Not what the machine has; in a container no more than its own limit leaves, files that can be given back counted."""
    books = {"/proc/meminfo": "MemTotal: 900 kB\nMemFree: 10 kB\nMemAvailable: 500 kB\nSwapFree: 70 kB\n"}

    def read_text(path):
        if str(path) not in books:
            raise FileNotFoundError(path)
        return books[str(path)]

    monkeypatch.setattr(memory.Path, "read_text", read_text)
    assert memory.available() == 570 * 1024
    group = "/sys/fs/cgroup/memory"
    books |= {f"{group}.max": "400000", f"{group}.current": "300000", f"{group}.stat": "anon 7\nfile 5000\n"}
    assert memory.available() == 105000


def test_the_kernels_books():
    free = memory.available()
    assert free is None or 1 << 20 < free < 1 << 50
