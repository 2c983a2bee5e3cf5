"""Any model in: graphs in files, networks of libraries by name, folders of Hugging Face's, each as an `nn.Module`."""

from robustpatch.intake.opening import Source, look_at, open_model, overridden
from robustpatch.intake.preprocessing import Prepared, Preprocessing

__all__ = ["Prepared", "Preprocessing", "Source", "look_at", "open_model", "overridden"]
