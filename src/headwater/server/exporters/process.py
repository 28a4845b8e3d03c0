"""The metrics of the process itself: memory, file descriptors, time of the processor, start, and version.

Those of the operating system have the names that Prometheus' client libraries give them in every language.
"""

from __future__ import annotations

import platform
import resource
from collections.abc import Iterator
from importlib.metadata import version

import psutil
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

STARTED = psutil.Process().create_time()
"""When this process started. Read once: an alert counts its changes, and the system's clock may be set."""


def process_metrics() -> Iterator[Metric]:
    """Yield the metrics of this process as they are now."""
    yield _build()
    process = psutil.Process()
    with process.oneshot():
        memory, times = process.memory_info(), process.cpu_times()
        gauges = {
            "process_resident_memory_bytes": ("Memory of the process that is in RAM.", memory.rss),
            "process_virtual_memory_bytes": ("Address space of the process.", memory.vms),
            "process_start_time_seconds": ("When the process started, in seconds since 1970.", STARTED),
            "process_open_fds": ("Open file descriptors; each socket is one.", process.num_fds()),
            "process_max_fds": ("File descriptors that the process may open.", _most_files()),
        }
    for name, (text, value) in gauges.items():
        yield GaugeMetricFamily(name, text, value)
    spent = times.user + times.system
    yield CounterMetricFamily("process_cpu_seconds", "Time of the processor that the process has used.", spent)


def _build() -> Metric:
    family = GaugeMetricFamily("headwater_build_info", "1; the labels say what runs.", labels=["version", "python"])
    family.add_metric([version("headwater"), platform.python_version()], 1)
    return family


def _most_files() -> float:
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return float("inf") if limit == resource.RLIM_INFINITY else limit
