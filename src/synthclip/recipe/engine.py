"""The recipe's section for the engine: where the work runs."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from synthclip.recipe.section import Section, runtime


class RayConfig(Section):
    """For `kind: ray`. The run directory must lie where every node sees it under one path."""

    address: str = runtime("local")
    """`local` starts a Ray of its own on this machine; `auto` or `host:6379` joins one that runs."""


class SlurmConfig(Section):
    """For `kind: slurm`: a job array. The run directory must lie where every node sees it under one path."""

    executor: Literal["slurm", "local"] = runtime("slurm")
    """`local` runs the jobs as processes of this machine instead, to try a set-up out."""
    folder: str = runtime("slurm")
    """Where job scripts, logs and messages go; every node must see it."""
    partition: str | None = runtime(None)
    """The partition that jobs are submitted to; null for the cluster's default."""
    account: str | None = runtime(None)
    """The account that is charged; null for your default."""
    timeout_min: int = runtime(240, ge=1)
    """After it a job is requeued and goes on with the shard it was at."""
    mem_gb: int | None = runtime(None, ge=1)
    """Memory of a job in GB; null for the cluster's default."""
    cpus: int | None = runtime(None, ge=1)
    """CPUs of a job; None for what the stage asks for."""
    gpus: int | None = runtime(None, ge=0)
    """GPUs of a job; None for what the stage asks for."""
    options: dict[str, str] = runtime({})
    """Further options of sbatch by their long names, such as `qos` or `constraint`."""

    @field_validator("folder", "partition", "account", "options")
    @classmethod
    def _is_one_line(cls, value: str | dict[str, str] | None) -> str | dict[str, str] | None:
        """A line break would end the `#SBATCH` comment that holds the value: what follows would be run."""
        texts = [*value, *value.values()] if isinstance(value, dict) else [value or ""]
        if not all(text.isprintable() for text in texts):
            raise ValueError("must be printable characters of one line")
        return value


class EngineConfig(Section):
    """Where the work runs. None of it changes a result."""

    kind: Literal["local", "ray", "slurm"] = runtime("local")
    """`local` is processes of this machine, `ray` actors, `slurm` a job array."""
    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = runtime("auto")
    """Processes, actors or jobs. `auto` is one a GPU, or one a core, and with `slurm` up to 16 jobs; 0 runs
    in this very process, for a debugger."""
    attempts: int = runtime(3, ge=1)
    """How often a shard is tried before the run stops."""
    stalled_after_s: float = runtime(60.0, gt=0)
    """With `local`, a worker that neither reports nor computes for this long is killed; its shard is tried
    again."""
    ray: RayConfig = runtime(RayConfig())
    """Settings of `kind: ray`."""
    slurm: SlurmConfig = runtime(SlurmConfig())
    """Settings of `kind: slurm`."""
