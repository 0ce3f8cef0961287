"""On what a figure was measured."""

import os
import platform
from pathlib import Path

from espnet_adaltm.scoring.environment import environment, version


def machine(*packages: str) -> dict[str, str]:
    """Processor, cores, memory, system and versions; ``packages`` are named as well."""
    facts = {
        "processor": _line("/proc/cpuinfo", "model name") or platform.processor() or "unknown",
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": _line("/proc/meminfo", "MemTotal") or "unknown",
        "system": f"{platform.system()} {platform.release()}",
    }
    return {**facts, **environment(), **{package: version(package) for package in packages}}


def _line(path: str, key: str) -> str:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""
    found = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith(key)]
    return found[0] if found else ""
