"""Meters: times and memory of the work alone."""

from __future__ import annotations

import sys
import time

import numpy as np
import pytest

from smalti.bench.resources import Cost, Meter

linux = pytest.mark.skipif(sys.platform != "linux", reason="no other system can forget a peak")


def test_costs_add_up_and_keep_the_higher_peak() -> None:
    total = Cost(1.0, 2.0, 30) + Cost(0.5, 0.25, 10)
    assert total == Cost(1.5, 2.25, 30)
    assert Cost() + Cost(1.0, 1.0, None) == Cost(1.0, 1.0, None)
    assert (Cost() + Cost(peak=7)).peak == 7


def test_sleeping_takes_time_but_no_processor() -> None:
    result, cost = Meter()(lambda: time.sleep(0.05) or "slept")
    assert result == "slept"
    assert cost.seconds >= 0.05 and cost.cpu_seconds < 0.04


@linux
def test_memory_is_that_of_the_work_and_not_of_earlier_work() -> None:
    meter = Meter()
    _, large = meter(lambda: np.ones(20_000_000).sum())
    _, small = meter(lambda: np.ones(1_000_000).sum())
    assert large.peak is not None and small.peak is not None
    assert 150e6 < large.peak < 260e6
    assert small.peak < 60e6
