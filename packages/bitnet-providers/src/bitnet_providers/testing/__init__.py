"""The conformance kit: what every teacher has to keep, as tests that a plugin's author inherits.

::

    # tests/test_mine.py
    from bitnet_providers.testing import TeacherConformance


    class TestMine(TeacherConformance):
        plugin_module = "my_package.plugin"
        plugin_name = "mine"

Needs pytest: ``pip install 'bitnet-providers[testing]'``. The guide: docs/write-a-provider.md.
"""

from bitnet_providers.testing.conformance import TeacherConformance
from bitnet_providers.testing.faults import Fault

__all__ = ["Fault", "TeacherConformance"]
