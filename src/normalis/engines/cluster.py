"""A Ray cluster to work on: joined or started, and left again (extra ``ray``)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from normalis.errors import RunError, SettingsError
from normalis.errors.extras import require

__all__ = ["MAX_RETRIES", "Cluster", "cause_of"]

#: Of work whose worker or node was lost; its own errors are not retried.
MAX_RETRIES = 10


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Which cluster, and what one job gets of it.

    Args:
        address: ``local`` starts Ray on this machine and stops it in the end; ``auto`` or
            ``HOST:PORT`` joins a cluster that runs.
        gpus_per_job: share of a GPU that a job gets: 0.25 puts four at once on each.
        cpus_per_job: cores that a job gets.
    """

    address: str = "local"
    gpus_per_job: float = 0.0
    cpus_per_job: float = 1.0

    def __post_init__(self) -> None:
        if self.gpus_per_job < 0 or self.cpus_per_job <= 0:
            raise SettingsError(
                f"a job needs cores and no negative share of a GPU, got {self.cpus_per_job} and "
                f"{self.gpus_per_job}"
            )

    @property
    def threads(self) -> int:
        """Threads that a job may use."""
        return max(1, int(self.cpus_per_job))

    @contextmanager
    def joined(self) -> Iterator[Any]:
        """Join or start the cluster, give the module ``ray``, and leave or stop it in the end.

        Raises:
            MissingExtraError: if Ray is not installed.
            RunError: if there is no cluster at the address.
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray = require("ray", extra="ray", why="the engine ray")
        if ray.is_initialized():  # the caller's own
            yield ray
            return
        # A dashboard can only be declined where Ray is started here.
        own = {"include_dashboard": False} if self.address == "local" else {}
        try:
            ray.init(address=self.address, log_to_driver=False, logging_level="warning", **own)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise RunError(f"Ray at address {self.address!r} cannot be joined: {error}") from error
        try:
            yield ray
        finally:
            ray.shutdown()

    def slots(self, ray: Any) -> int:
        """Return how many jobs the joined cluster does at once."""
        total = ray.cluster_resources()
        if self.gpus_per_job:
            return max(1, int(total.get("GPU", 0) / self.gpus_per_job))
        return max(1, int(total.get("CPU", 0) / self.cpus_per_job))

    def task(self, ray: Any, function: Any) -> Any:
        """Return a function as a task of the cluster, which is done again if it is lost."""
        return ray.remote(function).options(
            num_cpus=self.cpus_per_job,
            num_gpus=self.gpus_per_job,
            max_retries=MAX_RETRIES,
            retry_exceptions=False,
        )


def cause_of(error: Exception) -> str:
    """Return in one line what went wrong in a task."""
    cause = getattr(error, "cause", None) or error
    return f"{type(cause).__name__}: {cause}"
