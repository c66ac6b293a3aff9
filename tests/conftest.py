"""What every test shares: nothing it keeps lands in the user's own folders."""

import os
import tempfile

_cache = tempfile.TemporaryDirectory(prefix="autopoiesis-tests-")  # removed when the tests are over
os.environ.setdefault("AUTOPOIESIS_CACHE", _cache.name)
