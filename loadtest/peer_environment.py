"""Environments of their own for OpenVINO GenAI with onnxruntime and for CTranslate2, and the models in their formats.

All are made once, beside the results. torch comes from the project's own environment: it takes gigabytes.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from report import RESULTS
from served import ROOT

FOLDER = RESULTS / "peers"
ENVIRONMENT = FOLDER / "environment"
REQUIREMENTS = ("openvino-genai>=2026.4", "optimum-intel>=2.2", "nncf>=3.3", "onnxruntime>=1.31")
LAST_WORDS = 2000


def installed() -> Path:
    """The interpreter that has OpenVINO GenAI and onnxruntime."""
    return _installed(ENVIRONMENT, REQUIREMENTS)


def ctranslate2_installed() -> Path:
    """The interpreter that has CTranslate2."""
    return _installed(FOLDER / "ctranslate2", ("ctranslate2>=4.8",))


def _installed(folder: Path, requirements: tuple[str, ...]) -> Path:
    python = folder / "bin" / "python"
    stamp = folder / "requirements.txt"
    wanted = "\n".join(requirements)
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    print(f"Installing {', '.join(requirements)} into {folder}", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    _run([sys.executable, "-m", "venv", str(folder)])
    own = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    (own / "project.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    constraints = folder / "constraints.txt"
    constraints.write_text(f"torch=={version('torch').partition('+')[0]}\n")
    pip = [str(python), "-m", "pip"]
    _run([*pip, "install", "--quiet", "--disable-pip-version-check", "-c", str(constraints), *requirements])
    # Text models do not need it, and its operators are for another build of torch.
    _run([*pip, "uninstall", "--quiet", "--yes", "torchvision"])
    stamp.write_text(wanted)
    return python


def openvino_model(model: str, weights: str) -> Path:
    """The folder of a causal model with weights in ``fp16`` or ``int8``."""
    folder = FOLDER / f"{Path(model).name}-openvino-{weights}"
    if not folder.exists():
        print(f"Converting {model} for OpenVINO, {weights}", flush=True)
        unfinished = FOLDER / f"{folder.name}.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        command = [str(installed().with_name("optimum-cli")), "export", "openvino", "-m", str(Path(model).resolve())]
        _run([*command, "--task", "text-generation-with-past", "--weight-format", weights, str(unfinished)])
        unfinished.rename(folder)
    return folder


def onnx_model(model: Path) -> Path:
    """The file of a classifier, in float32, an adapter merged into its base."""
    path = FOLDER / f"{model.name}.onnx"
    if not path.exists():
        print(f"Converting {model} for onnxruntime", flush=True)
        FOLDER.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".unfinished")
        _run([sys.executable, __file__, str(model), str(unfinished)])
        unfinished.rename(path)
    return path


def ctranslate2_model(model: Path) -> Path:
    """The folder of a translator with int8 weights."""
    folder = FOLDER / f"{model.name}-ctranslate2-int8"
    if not folder.exists():
        print(f"Converting {model} for CTranslate2, int8", flush=True)
        unfinished = FOLDER / f"{folder.name}.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        script = Path(__file__).with_name("ctranslate2_process.py")
        _run([str(ctranslate2_installed()), str(script), "convert", str(model.resolve()), str(unfinished)])
        unfinished.rename(folder)
    return folder


def _run(command: list[str]) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout[-LAST_WORDS:]}{done.stderr[-LAST_WORDS:]}")


def _write_onnx(model: str, path: str) -> None:
    """In a process of its own: exporting changes the module, and warns a lot."""
    sys.path.insert(0, str(ROOT))
    import torch
    from torch import Tensor, nn

    from server.config import ModelConfig
    from server.models.loader import load

    module = load(ModelConfig(name="peer", path=model, dtype="float32", device="cpu")).module
    module.config._attn_implementation = "eager"
    names = ("input_ids", "attention_mask", "token_type_ids")

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, *inputs: Tensor) -> Tensor:
            return self.module(**dict(zip(names, inputs, strict=True))).logits

    token_ids_BL = torch.randint(10, 1000, (2, 12))
    inputs = (token_ids_BL, torch.ones_like(token_ids_BL), torch.zeros_like(token_ids_BL))
    torch.onnx.export(
        Classifier(),
        inputs,
        path,
        input_names=list(names),
        output_names=["logits"],
        dynamic_axes={name: {0: "texts", 1: "tokens"} for name in names},
        dynamo=False,
    )


if __name__ == "__main__":
    _write_onnx(*sys.argv[1:3])
