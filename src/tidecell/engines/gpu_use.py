"""How busy this machine's accelerators are, by NVML; what cannot be measured is not there."""

from __future__ import annotations


def gpu_percents() -> dict[int, int]:
    """Return the use of each accelerator by its index, in percent of the last sample period.

    Empty where there is no driver, no binding, or no right to ask; a device that cannot be asked is left out,
    as are all once MIG is on, whose instances have no utilisation of their own.
    """
    found: dict[int, int] = {}
    try:
        import pynvml

        pynvml.nvmlInit()
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            found[index] = int(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu)
    except Exception:  # whatever the driver or its binding raises: it is no proof of idleness
        return found
    return found


__all__ = ["gpu_percents"]
