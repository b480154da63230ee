"""python -m gptoss_native: the same as the command gptoss-native."""

import sys

from .cli import main

sys.exit(main())
