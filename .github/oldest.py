"""Print the oldest versions that pyproject.toml allows of what every run needs, as constraints for pip."""

import re
import sys
import tomllib
from pathlib import Path

wanted = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]["dependencies"]
sys.stdout.writelines(re.sub(r">=([\d.]+).*", r"==\1", one) + "\n" for one in wanted)
