"""DiffusionReward's library; `stages/` are thin commands over it."""

import os
import sys
import warnings

# read once, when huggingface_hub is imported: nothing here asks a model hub
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# pyiqa's requirements bring bitsandbytes, which diffusers and peft import where they find it: two seconds and a warning
# of kernels in every process. Only pyiqa's qalign_4bit and qalign_8bit would use it. An entry of None makes it absent.
sys.modules.setdefault("bitsandbytes", None)  # type: ignore[arg-type]
warnings.filterwarnings("ignore", "pkg_resources is deprecated")  # pytorch_wavelets imports it; what is pinned has it
