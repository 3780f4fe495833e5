"""The crash proof's own modules explain their failed assertions as tests do."""

import pytest

pytest.register_assert_rewrite("crash_sites", "crash_scenarios")
