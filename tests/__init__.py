"""What the tests must find set, and not set, before they import anything else."""

import os
import tempfile

# Tests must not look for a model hub.
os.environ["HF_HUB_OFFLINE"] = os.environ["ORT_DISABLE_TELEMETRY"] = "1"
# What a user may have set for programs of ours.
os.environ.pop("RECEIPTBERT_DEBUG", None)
os.environ.pop("TQDM_DISABLE", None)
os.environ.pop("PYTHONUNBUFFERED", None)  # nothing would be left in a stream that breaks
# Nor may what is set for git and DVC reach the tests' own projects: a hook of git's sets GIT_DIR, a stage has
# DVC_ROOT, a person may have a cache or a remote of DVC's for all projects.
for name in [name for name in os.environ if name.startswith(("GIT_", "DVC_"))]:
    del os.environ[name]
DVC = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
for kind in ("GLOBAL_CONFIG", "SYSTEM_CONFIG", "SITE_CACHE"):
    os.environ[f"DVC_{kind}_DIR"] = f"{DVC.name}/{kind.lower()}"
# DVC sends no usage statistics, and looks for no newer version.
os.environ["DVC_NO_ANALYTICS"] = os.environ["CI"] = "1"
# The dozens of stages that run as processes of their own would compile the code anew, a second each.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
