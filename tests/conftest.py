"""What every test shares: nothing it keeps lands in the user's own folders."""

import os
import tempfile

os.environ.setdefault("AUTOPOIESIS_CACHE", tempfile.mkdtemp(prefix="autopoiesis-tests-"))
